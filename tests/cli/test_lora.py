"""adapter=lora from training to evaluation: only the adapter is trained, averaged and stored, on a base that is found
again."""

import csv
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dit.checkpoints.native import BASE, averages_of, checkpoints_of, find_checkpoint, read_checkpoint
from dit.cli.evaluate import evaluate
from dit.cli.export import export
from dit.cli.generate import generate
from dit.runs import load_run
from dit.tensors import fingerprint

from ..conftest import composed, train_tiny

LORA = ["adapter=lora", "adapter.rank=4", "optimizer.lr=0.02", "lr_schedule.warmup=0"]
PROMPT = "prompts='[a large red star on a black background]'"


@pytest.fixture(scope="module")
def adapted(tiny_run, tmp_path_factory):
    return train_tiny(tmp_path_factory.mktemp("lora") / "run", f"init={tiny_run}", *LORA)


def test_only_the_adapter_is_trained_averaged_and_stored(tiny_run, adapted):
    path, checkpoint = find_checkpoint(adapted)
    base_path = find_checkpoint(tiny_run)[0]
    assert checkpoint["state_dict"]
    assert all(".lora_A." in name or ".lora_B." in name for name in checkpoint["state_dict"])
    assert all(average.keys() == checkpoint["state_dict"].keys() for average in averages_of(checkpoint).values())
    assert path.stat().st_size < base_path.stat().st_size / 3
    start = load_run(tiny_run).pipeline.backbone
    assert checkpoint[BASE] == {"path": str(base_path), "fingerprint": fingerprint(start)}
    trained = load_run(adapted).pipeline.backbone
    kept = {name.replace("base_layer.", ""): p for name, p in trained.state_dict().items() if ".lora_" not in name}
    assert kept.keys() == start.state_dict().keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in start.state_dict().items())
    moved = [p for name, p in checkpoint["state_dict"].items() if ".lora_B." in name]
    assert all(p.any() for p in moved)


@pytest.mark.parametrize("again", [["init={base}"], []], ids=["init repeated", "init left out"])
def test_resuming_is_exact(tiny_run, adapted, tmp_path, again):
    copy = tmp_path / "copy"
    shutil.copytree(adapted, copy)
    (copy / "summary.json").unlink()
    checkpoints_of(copy)[0].unlink()
    assert checkpoints_of(copy)[0].stem == "step_0000004"
    train_tiny(copy, *LORA, "resume=auto", *(word.format(base=tiny_run) for word in again))
    ours, theirs = (read_checkpoint(checkpoints_of(run)[0]) for run in (copy, adapted))
    assert ours["global_step"] == theirs["global_step"] == 6
    assert ours[BASE] == theirs[BASE]
    for a, b in zip(*([c["state_dict"], *averages_of(c).values()] for c in (ours, theirs)), strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in b)


def test_it_is_sampled_scored_and_exported_merged(tiny_run, adapted, tmp_path):
    words = [f"ckpt={adapted}", PROMPT, "recipe.steps=2", "device=cpu"]
    pictures = [generate(composed("generate", [*words, f"out={tmp_path / name}"])) for name in ("a", "b")]
    base = generate(composed("generate", [f"ckpt={tiny_run}", *words[1:], f"out={tmp_path / 'base'}"]))
    files = [(folder / "prompt_0_seed_0.png").read_bytes() for folder in (*pictures, base)]
    assert files[0] == files[1] != files[2]
    scored = [
        "sampler=euler",
        "steps=[2]",
        "guidance.scale=[1]",
        "n=4",
        "references=8",
        "wandb.mode=disabled",
        "device=cpu",
    ]
    folder = evaluate(composed("evaluate", [f"ckpt={adapted}", *scored, f"out={tmp_path / 'scores'}"]))
    assert (folder / "results.csv").is_file()
    out = export(composed("export", [f"ckpt={adapted}", f"out={tmp_path / 'merged'}", "format=safetensors"]))
    merged, start = load_file(out / "model.safetensors"), load_run(tiny_run).pipeline.backbone.state_dict()
    assert merged.keys() == start.keys()
    changed = {name for name in start if not torch.equal(merged[name], start[name])}
    assert changed == {
        f"{n}.weight"
        for n in {k.removeprefix("backbone.").split(".lora_")[0] for k in find_checkpoint(adapted)[1]["state_dict"]}
    }


def picture(ckpt, folder, *words):
    words = [f"ckpt={ckpt}", PROMPT, "recipe.steps=2", "device=cpu", f"out={folder}", *words]
    with Image.open(generate(composed("generate", [*words, "replace=true"])) / "prompt_0_seed_0.png") as made:
        return made.tobytes()


@pytest.mark.slow
def test_adapters_are_added_to_their_base_with_scales(tiny_run, adapted, tmp_path):
    """From a run, and from the folder that export writes of it."""
    out = export(composed("export", [f"ckpt={adapted}", f"out={tmp_path / 'adapter'}", "format=adapter"]))
    assert sorted(file.name for file in out.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    base, own = picture(tiny_run, tmp_path / "base"), picture(adapted, tmp_path / "own")
    assert base != own
    for path in (adapted, out):
        assert picture(tiny_run, tmp_path / "a", f"adapters={path}") == own
        assert picture(tiny_run, tmp_path / "b", f"adapters=[{{path:{path},scale:0}}]") == base
        assert picture(tiny_run, tmp_path / "c", f"adapters=[{path}]", "adapter_scale=0") == base
        half = picture(tiny_run, tmp_path / "d", f"adapters=[{{path:{path},scale:0.5}}]")
        assert half == picture(adapted, tmp_path / "e", "adapter_scale=0.5") not in (base, own)
        two = [f"adapters=[{{path:{path},scale:0.25}},{{path:{adapted},scale:0.25}}]"]
        merged = [export(composed("export", [f"ckpt={tiny_run}", f"out={tmp_path / name}", "format=safetensors", *words]))
                  for name, words in (("f", two), ("g", [f"adapters={path}", "adapter_scale=0.5"]))]  # fmt: skip
        a, b = (load_file(folder / "model.safetensors") for folder in merged)
        assert all((a[name] - b[name]).abs().max() < 1e-6 for name in b)


def test_scales_are_swept(tiny_run, adapted, tmp_path):
    words = ["sampler=euler", "steps=[2]", "guidance.scale=[1]", "n=4", "references=8", "wandb.mode=disabled",
             "device=cpu", "metric=[prompt_accuracy,fd_shapes]", "confirm=false"]  # fmt: skip
    swept = evaluate(
        composed("evaluate", [f"ckpt={adapted}", "adapter_scale=[0,0.5,1]", *words, f"out={tmp_path / 'a'}"])
    )
    base = evaluate(composed("evaluate", [f"ckpt={tiny_run}", *words, f"out={tmp_path / 'b'}"]))
    added = [f"ckpt={tiny_run}", f"adapters={adapted}", "adapter_scale=[0,1]"]
    added = evaluate(composed("evaluate", [*added, *words, f"out={tmp_path / 'c'}"]))
    rows = {folder: list(csv.DictReader(open(folder / "results.csv"))) for folder in (swept, base, added)}
    assert [row["adapter_scale"] for row in rows[swept]] == ["0.0", "0.5", "1.0"]
    assert "adapter_scale" not in rows[base][0]
    column = next(name for name in rows[base][0] if name.startswith("fd_shapes"))
    distances = [row[column] for row in rows[swept]]
    assert len(set(distances)) == 3
    assert distances[0] == rows[base][0][column]
    assert [row[column] for row in rows[added]] == [distances[0], distances[2]]
    first, expected = (
        next(folder.glob(name)) for folder, name in ((swept, "cells/0_euler*.png"), (base, "cells/*.png"))
    )
    assert first.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ckpt={base}", "adapter_scale=0.5"], r"adapter_scale=0\.5: .* has no low-rank adapter; add one with adapters=PATH"),
        (["ckpt={base}", "adapters={base}"], r"holds a whole network and no adapter: use ckpt="),
        (["ckpt={base}", "adapters=[{{path:{adapted},strength:2}}]"], r"each has a path and may have a scale and weights"),
        (["ckpt={base}", "adapters=[{{path:{adapted},scale:much}}]"], r"adapters\.scale='much': expected a number"),
        (["ckpt={base}", "adapters=[{{path:{adapted},weights:ema_0.5}}]"], r"weights=ema_0\.5 are not in .*; it has ema, "),
        (["ckpt={other}", "adapters={adapted}"], r"is an adapter of other weights: .*; use it on its base, or export it"),
    ],
)  # fmt: skip
def test_adapters_that_cannot_be_used_are_refused_in_one_line(tiny_run, adapted, tmp_path, words, message):
    places = {"base": tiny_run, "adapted": adapted, "other": tmp_path / "other"}
    if "{other}" in words[0]:
        shutil.copytree(tiny_run, places["other"])
        change(places["other"])
    words = [word.format(**places) for word in words]
    with pytest.raises(ValueError, match=message) as error:
        picture(words[0].removeprefix("ckpt="), tmp_path / "out", *words[1:])
    assert "\n" not in str(error.value)


def change(run):
    """Changes the averages of a run's checkpoints."""
    for file in checkpoints_of(run):
        other = read_checkpoint(file)
        for average in averages_of(other).values():
            next(iter(average.values())).add_(1)
        torch.save(other, file.with_suffix(".new"))  # not over the file, which is mapped into memory
        file.with_suffix(".new").replace(file)


def test_an_adapter_of_other_weights_is_refused_in_one_line(tiny_run, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_run, base)
    run = train_tiny(tmp_path / "run", f"init={base}", *LORA, "trainer.max_steps=2")
    change(base)
    with pytest.raises(
        ValueError, match=r"holds only an adapter of .*, whose weights are others now: \w+, not"
    ) as error:
        load_run(run)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"holds only an adapter, and init=.* has other weights now"):
        train_tiny(run, *LORA, "resume=auto", "trainer.max_steps=4")
    shutil.rmtree(base)
    with pytest.raises(ValueError, match=r"holds only an adapter of .*, which cannot be loaded: .* no such run"):
        load_run(run)


def test_another_run_starts_from_the_merged_weights(adapted, tmp_path):
    run = train_tiny(tmp_path / "run", f"init={adapted}", "trainer.max_steps=1", "optimizer.lr=1e-12")
    [layer] = {
        n.split(".lora_")[0]
        for n in load_run(adapted).pipeline.backbone.state_dict()
        if "mlp.up.lora_A" in n and n.startswith("blocks")
    }
    part = load_run(adapted).pipeline.backbone.get_submodule(layer)
    expected = (
        part.base_layer.weight + part.scaling["default"] * part.lora_B["default"].weight @ part.lora_A["default"].weight
    )
    weight = load_run(run).pipeline.backbone.get_submodule(layer).weight
    torch.testing.assert_close(weight, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["dora", "rslora"])
def test_without_init_the_checkpoint_is_whole(tmp_path, name):
    run = train_tiny(tmp_path / "run", f"adapter={name}", "trainer.max_steps=2")
    checkpoint = find_checkpoint(run)[1]
    assert BASE not in checkpoint
    assert any(name.endswith("base_layer.weight") for name in checkpoint["state_dict"])
    assert load_run(run).sample("a large red star on a black background", steps=1).images.isfinite().all()
