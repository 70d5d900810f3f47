"""adapter=lora from training to evaluation: only the adapter is trained, averaged and stored, on a base that is found
again."""

import shutil

import pytest
import torch
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


def test_an_adapter_of_other_weights_is_refused_in_one_line(tiny_run, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_run, base)
    run = train_tiny(tmp_path / "run", f"init={base}", *LORA, "trainer.max_steps=2")
    other = read_checkpoint(checkpoints_of(base)[0])
    for average in averages_of(other).values():
        next(iter(average.values())).add_(1)
    torch.save(other, tmp_path / "other.ckpt")  # not over the file, which is mapped into memory
    (tmp_path / "other.ckpt").replace(checkpoints_of(base)[0])
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
