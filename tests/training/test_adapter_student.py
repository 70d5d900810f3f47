"""A student as a low-rank adapter of its teacher, from the command line to samples, scores and exported weights."""

import csv
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from dit.adapters.low_rank import base_state
from dit.checkpoints.native import BASE, averages_of, checkpoints_of, find_checkpoint, read_checkpoint
from dit.cli.evaluate import evaluate
from dit.cli.export import export
from dit.diffusion.guidance import ClassifierFree, Embedded
from dit.layers.embeddings import extra_inputs
from dit.runs import load
from dit.tensors import fingerprint

from ..conftest import composed, train_tiny
from .test_distillation import distil

LOW_RANK = ["adapter=flow_map_lora", "adapter.rank=4", "optimizer.lr=0.02", "lr_schedule.warmup=0"]
PROMPTS = ["a large red star on a black background"]


@pytest.fixture(scope="module")
def student(tiny_run, tmp_path_factory):
    return distil(tiny_run, tmp_path_factory.mktemp("low_rank") / "run", *LOW_RANK)


def pixels(run, scale=1.0, **recipe):
    run.scale_adapters(scale)
    return run.sample(PROMPTS, steps=2, **recipe).images


def test_only_the_updates_and_the_new_embeddings_are_trained_averaged_and_stored(tiny_run, student):
    checkpoint = find_checkpoint(student)[1]
    held, teacher = checkpoint["state_dict"], load(tiny_run).pipeline.backbone
    added = {name for name in held if ".lora_" not in name}
    assert {name.split(".")[3] for name in added} == {"duration", "guidance_scale"}
    assert all(name.startswith("backbone.time.extra.") for name in added)
    assert all(bool(held[name].any()) for name in held if ".lora_B." in name or name.endswith("down.weight"))
    assert all(average.keys() == held.keys() for average in averages_of(checkpoint).values())
    assert checkpoint[BASE] == {"path": str(find_checkpoint(tiny_run)[0]), "fingerprint": fingerprint(teacher)}
    kept, expected = base_state(load(student).pipeline.backbone), teacher.state_dict()
    assert kept.keys() == expected.keys()
    assert all(torch.equal(kept[name], expected[name]) for name in expected)
    assert json.loads((student / "summary.json").read_text())["val/semigroup_residual"] > 0


def test_at_scale_0_it_is_its_teacher_bit_for_bit_and_no_flow_map(tiny_run, student):
    teacher, run = load(tiny_run), load(student)
    ordinary = {"sampler": "euler", "guidance": ClassifierFree(2.0)}
    expected = teacher.sample(PROMPTS, steps=2, **ordinary).images
    assert torch.equal(pixels(run, 0.0, **ordinary), expected)
    assert not torch.equal(pixels(run, 1.0, **ordinary), expected)
    assert not torch.equal(pixels(run, 0.5, **ordinary), pixels(run, 1.0, **ordinary))
    mapped = {"sampler": "flow_map", "guidance": Embedded(2.0)}
    assert torch.isfinite(pixels(run, 1.0, **mapped)).all()
    for name, fault in (("sampler", "sampler=flow_map needs"), ("guidance", "guidance=embedded needs")):
        with pytest.raises(
            ValueError, match=rf"{fault} a network that was trained .* adapter_scale=0: choose"
        ) as error:
            pixels(run, 0.0, **(ordinary | {name: mapped[name]}))
        assert "\n" not in str(error.value)


def test_it_is_swept_over_steps_and_scales(student, tmp_path):
    words = ["sampler=flow_map", "guidance=embedded", "guidance.scale=[2]", "steps=[1,2]", "n=4", "references=8",
             "metric=prompt_accuracy", "confirm=false", "device=cpu", "wandb.mode=disabled"]  # fmt: skip
    places = [f"ckpt={student}", f"out={tmp_path}", f"cache_dir={student.parent / 'cache'}"]
    folder = evaluate(composed("evaluate", [*words, *places, "adapter_scale=[0.5,1]"]))
    rows = list(csv.DictReader(open(folder / "results.csv")))
    assert {(row["steps"], row["adapter_scale"]) for row in rows} == {
        (s, a) for s in ("1", "2") for a in ("0.5", "1.0")
    }
    with pytest.raises(ValueError, match=r"sampler=flow_map needs .* adapter_scale=0"):
        evaluate(composed("evaluate", [*words, *places, "adapter_scale=[0,1]"]))


@pytest.mark.parametrize("low_rank", [True, False], ids=["low rank", "all weights"])
def test_exported_weights_load_into_a_flow_map_and_answer_the_same(tiny_run, student, tmp_path, low_rank, capsys):
    where = student if low_rank else distil(tiny_run, tmp_path / "run", "optimizer.lr=0.01", "lr_schedule.warmup=0")
    run = load(where)
    expected = pixels(run, sampler="flow_map", guidance=Embedded(3.0))
    out = export(composed("export", [f"ckpt={where}", f"out={tmp_path / 'out'}", "format=safetensors"]))
    assert "with the inputs duration, guidance_scale" in capsys.readouterr().err
    other = load(
        distil(tiny_run, tmp_path / "other", "trainer.max_steps=1", "lr_schedule.decay=0", "lr_schedule.warmup=0")
    )
    assert not torch.equal(pixels(other, sampler="flow_map", guidance=Embedded(3.0)), expected)
    other.pipeline.backbone.load_state_dict(load_file(out / "model.safetensors"))
    torch.testing.assert_close(pixels(other, sampler="flow_map", guidance=Embedded(3.0)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["format=diffusers"], r"conditioned on duration, guidance_scale, which no other library supports"),
        (
            ["format=adapter"],
            r"format=adapter: the adapter has the embeddings of duration, guidance_scale too, .* format=s",
        ),
    ],
)
def test_formats_that_have_no_place_for_the_embeddings_are_refused(student, tmp_path, words, message):
    with pytest.raises(ValueError, match=message) as error:
        export(composed("export", [f"ckpt={student}", f"out={tmp_path / 'out'}", *words]))
    assert "\n" not in str(error.value)


def test_another_adapter_of_the_teacher_is_added_to_it_but_not_the_reverse(tiny_run, student, tmp_path):
    style = train_tiny(
        tmp_path / "style", f"init={tiny_run}", "adapter=lora", "optimizer.lr=0.02", "trainer.max_steps=2"
    )
    mapped = {"sampler": "flow_map", "guidance": Embedded(2.0)}
    both = load(student, adapters=[str(style)])
    assert extra_inputs(both.pipeline.backbone) == ["duration", "guidance_scale"]
    assert not torch.equal(pixels(both, **mapped), pixels(load(student), **mapped))
    with pytest.raises(ValueError, match=r"an adapter with further inputs, duration, guidance_scale, .*: use ckpt="):
        load(tiny_run, adapters=[str(student)])


def test_it_resumes_exactly(tiny_run, student, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(student, copy)
    (copy / "summary.json").unlink()
    checkpoints_of(copy)[0].unlink()
    assert checkpoints_of(copy)[0].stem == "step_0000002"
    distil(tiny_run, copy, *LOW_RANK, "resume=auto")
    ours, theirs = (read_checkpoint(checkpoints_of(run)[0]) for run in (copy, student))
    assert ours["global_step"] == theirs["global_step"] == 4
    assert ours[BASE] == theirs[BASE]
    for a, b in zip(*([c["state_dict"], *averages_of(c).values()] for c in (ours, theirs)), strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in b)
