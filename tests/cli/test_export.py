"""Weights out of a run and into another, at the command line."""

import json

import pytest
import torch

from dit.cli.export import export
from dit.cli.train import train
from dit.data import digits
from dit.diffusion.guidance import ClassifierFree
from dit.diffusion.noise import Noise
from dit.diffusion.sampler.ddim import ddim
from dit.diffusion.time import Leading
from dit.pipeline import Recipe
from dit.runs import load_run
from dit.types import Condition

from ..conftest import composed

CLASSES = [
    "experiment=digits",
    "backbone=dit_tiny",
    "text_encoder=classes",
    "debug=one_batch",
    "trainer.accelerator=cpu",
]
CLASSES += [
    "backbone.width=32",
    "backbone.depth=1",
    "backbone.heads=2",
    "++backbone.time_shift=1.0",
]


def class_run(tmp_path, name, *words):
    words = [*CLASSES, f"run_dir={tmp_path / name}", f"cache_dir={tmp_path / 'cache'}", "batch_size=8", *words]
    return train(composed("train", words))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return class_run(tmp_path_factory.mktemp("runs"), "first")


def exported(run, out):
    return export(composed("export", [f"ckpt={run}", f"out={out}"]))


def test_an_exported_run_answers_the_same_in_diffusers_and_begins_another_run(run, tmp_path, capsys):
    from diffusers import DiTTransformer2DModel

    folder = exported(run, tmp_path / "out")
    output = capsys.readouterr()
    assert output.out.splitlines()[-1] == str(folder)
    assert "only the transformer is written, because DiTPipeline works on a chain of 1000 betas" in output.err
    assert "with the path Linear and the prediction Flow" in output.err
    ours, theirs = load_run(run, device="cpu").pipeline.backbone, DiTTransformer2DModel.from_pretrained(folder).eval()
    x, label = torch.randn(2, 3, 8, 8), torch.tensor([3, 10])
    with torch.no_grad():
        expected = theirs(x, timestep=torch.tensor([5, 900]), class_labels=label).sample
        result = ours(x, torch.tensor([5.0, 900.0]), Condition(label=label))
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    again = class_run(tmp_path, "again", f"init={folder}", "optimizer.lr=1e-12", "lr_schedule.warmup=0")
    for key, value in load_run(again, "raw", "cpu").pipeline.backbone.state_dict().items():
        torch.testing.assert_close(value, ours.state_dict()[key], atol=1e-6, rtol=0)


NAMES = [*(f"a handwritten {name}" for name in digits.NAMES), *(f"class {i}" for i in range(10, 1000))]
CHAIN = [
    "autoencoder=shapes", "backbone.patch=1", "path=ddpm_linear", "prediction=eps_learned_range", "objective=hybrid",
    "density=uniform_index", "grid=leading", "sampler=ddim", "optimizer.lr=0.01", "lr_schedule.warmup=0",
    "trainer.max_steps=6",
]  # fmt: skip


def test_a_whole_pipeline_makes_the_same_pictures_in_diffusers(tmp_path, monkeypatch, capsys):
    from diffusers import DiTPipeline

    run = class_run(tmp_path, "chain", *CHAIN, f"text_encoder.names=[{','.join(NAMES)}]")
    folder = export(composed("export", [f"ckpt={run}", f"out={tmp_path / 'out'}", "weights=raw"]))
    output = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert output == [
        "note: DiTPipeline.from_pretrained samples from it what is sampled here with sampler=ddim grid=leading"
    ]
    ours, prompts, seeds = load_run(run, "raw", "cpu").pipeline, [NAMES[3], NAMES[7], NAMES[500]], [5, 5, 6]
    result = ours(prompts, seeds, Recipe(ddim, Leading(), 10, ClassifierFree(4.0)))
    noise = Noise(seeds, ours.latent_shape).start()
    monkeypatch.setattr("diffusers.pipelines.dit.pipeline_dit.randn_tensor", lambda **_: noise)
    theirs = DiTPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    labels = theirs.get_label_ids(prompts)
    assert labels == [3, 7, 500]
    expected = theirs(labels, guidance_scale=4.0, num_inference_steps=10, output_type="pt").images
    assert expected.shape == (3, 3, 8, 8)
    assert expected.std() > 0.1
    assert (expected[0] - expected[1]).abs().max() > 0.01  # of the same noise
    torch.testing.assert_close((result.images / 2 + 0.5).clamp(0, 1), expected, atol=1e-5, rtol=0)
    again = class_run(
        tmp_path, "again", *CHAIN, f"text_encoder.names=[{','.join(NAMES)}]", f"init={folder}", "optimizer.lr=1e-30"
    )
    begun, first = (load_run(r, "raw", "cpu").pipeline.backbone.state_dict() for r in (again, run))
    assert all(torch.equal(begun[key], value) for key, value in first.items())


def test_a_run_begins_another_run(run, tmp_path):
    again = class_run(tmp_path, "again", f"init={run}", "optimizer.lr=1e-12", "lr_schedule.warmup=0")
    first, second = (load_run(r, w, "cpu").pipeline.backbone.state_dict() for r, w in ((run, "ema"), (again, "raw")))
    for key in first:
        torch.testing.assert_close(first[key], second[key], atol=1e-6, rtol=0)


def test_the_original_code_s_file(run, tmp_path):
    """It has no time_shift=1, which this run was trained with for diffusers."""
    with pytest.raises(ValueError, match="the original DiT has time_shift=0"):
        export(composed("export", [f"ckpt={run}", f"out={tmp_path / 'no'}", "format=original"]))
    other = class_run(tmp_path, "other", "backbone.time_shift=0.0")
    folder = export(composed("export", [f"ckpt={other}", f"out={tmp_path / 'out'}", "format=original"]))
    state = torch.load(folder / "model.pt", weights_only=True)
    assert state["pos_embed"].shape == (1, 16, 32)
    with pytest.raises(ValueError, match="format=onnx is not one of diffusers, original, safetensors"):
        export(composed("export", [f"ckpt={run}", f"out={tmp_path / 'out'}", "format=onnx"]))


def test_a_killed_class_conditional_run_is_found_again(tmp_path):
    from dit.training.run_directory import same_config

    run = class_run(tmp_path, "first")
    again = composed(
        "train", [*CLASSES, f"run_dir={tmp_path / 'first'}", f"cache_dir={tmp_path / 'cache'}", "batch_size=8"]
    )
    assert same_config(run, again)
    assert not same_config(run, composed("train", [*CLASSES, "seed=1", "batch_size=8"]))


@pytest.mark.parametrize(("words", "fault"), [
    (["init={run}", "backbone.heads=4"], "has another backbone: it differs in heads"),
    (["init={out}", "+backbone.norm={{_target_: dit.layers.norm.rms_norm, _partial_: true}}"], "blocks.0.norm1 is LayerNorm, not RMSNorm"),
    (["init=nowhere"], "nowhere: no such file or folder"),
    (["init={empty}"], "is not a diffusers folder: it has no config.json"),
    (["init={unet}"], "contains a UNet2DModel; use one of"),
    (["init={out}", "backbone.width=64"], "of another model"),
    (["init={out}", "backbone=text_dit_tiny", "~backbone.time_shift", "text_encoder=words"], "is a DiT, and the config's backbone a TextDiT"),
    (["init={text}"], "cannot be read as weights"),
    (["init={out}", "backbone.time_shift=0.0"], "other settings of the backbone: time.shift is 1.0, not 0.0"),
    (["init={out}", "backbone.heads=4"], "blocks.0.attention.heads is 2, not 4"),
    (["text_encoder=words"], "does not take token_dim, pooled_dim: text_encoder=classes gives classes"),
])  # fmt: skip
def test_weights_that_do_not_fit_end_in_one_line(run, tmp_path, words, fault):
    (tmp_path / "empty").mkdir()
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    (tmp_path / "weights.pt").write_text("no weights")
    files = {"run": run, "empty": tmp_path / "empty", "unet": tmp_path / "unet", "text": tmp_path / "weights.pt"}
    if any("{out}" in word for word in words):
        files["out"] = exported(run, tmp_path / "out")
    with pytest.raises(ValueError, match=fault):
        class_run(tmp_path, "again", *(word.format(**files) for word in words))


def test_a_model_without_a_diffusers_class_is_refused(tiny_run, tmp_path):
    with pytest.raises(ValueError, match="diffusers has no class for a TextDiT"):
        exported(tiny_run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
