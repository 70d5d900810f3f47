"""Averages of any width at the command line: evaluate, generate, export, and from Python."""

import json

import pytest
import torch
from safetensors.torch import load_file

import dit
from dit.cli.evaluate import evaluate
from dit.cli.export import export
from dit.cli.generate import generate

from ..conftest import command, composed, only_line_of, train_tiny
from .test_export import class_run

SMALL = ["n=4", "references=32", "steps=[1]", "guidance.scale=[1]", "shown=2", "wandb.mode=disabled", "sampler=euler",
         "metric=prompt_accuracy", "confirm=false"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_tiny(tmp_path_factory.mktemp("posthoc") / "run", "callbacks.posthoc_ema.every=1")


def test_evaluate_sweeps_widths_and_says_how_each_was_made(run, tmp_path, capsys):
    words = [f"ckpt={run}", f"cache_dir={run.parent / 'cache'}", f"out={tmp_path}", *SMALL]
    folder = evaluate(
        composed("evaluate", [*words, "weights=[raw,posthoc_0.05,posthoc_0.07,posthoc_0.10,posthoc_0.05@4]"])
    )
    said = capsys.readouterr().err
    name = (
        "note: run/step_0000006.ckpt, posthoc_0.07: width 0.07 at step 6, from 12 snapshots, with an estimated relative"
    )
    assert said.count(f"{name} error of 2.1 %\n") == 1
    cards = {card["subject"]["weights"]: card for card in json.loads((folder / "results.json").read_text())["cards"]}
    assert list(cards) == ["raw", "posthoc_0.05", "posthoc_0.07", "posthoc_0.10", "posthoc_0.05@4"]
    made = {name: card["subject"].get("posthoc") for name, card in cards.items()}
    assert made["raw"] is None
    assert made["posthoc_0.07"]["relative_error"] == pytest.approx(0.0212, abs=1e-4)
    assert made["posthoc_0.10"]["relative_error"] < 1e-6
    assert (made["posthoc_0.10"]["width"], made["posthoc_0.10"]["step"]) == (0.1, 6)
    assert made["posthoc_0.10"]["snapshots"] == [
        f"step_{step:07d}_width_{width}.safetensors" for step in range(1, 7) for width in (0.05, 0.1)
    ]
    assert (made["posthoc_0.05@4"]["step"], len(made["posthoc_0.05@4"]["snapshots"])) == (4, 8)
    assert cards["posthoc_0.05@4"]["subject"]["step"] == 4
    assert len({card["subject"]["weights_sha256"] for card in cards.values()}) == 5
    assert "an estimated relative error of 2.1 %" in (folder / "report.html").read_text()


def test_the_model_itself_is_scored_with_each_width(run, tmp_path, capsys):
    words = [f"ckpt={run}", f"cache_dir={run.parent / 'cache'}", f"out={tmp_path}", *SMALL]
    words += ["metric=[bits_per_dim]", "metric.bits_per_dim.steps=2", "metric.bits_per_dim.count=4"]
    folder = evaluate(composed("evaluate", [*words, "weights=[posthoc_0.05,posthoc_0.10]"]))
    models = json.loads((folder / "results.json").read_text())["models"]
    assert [model["made_with"]["posthoc"]["width"] for model in models] == [0.05, 0.1]
    assert capsys.readouterr().err.count("with an estimated relative error of") == 2


def test_generate_and_load_use_the_same_weights(run, tmp_path, capsys):
    loaded = dit.load(run, weights="posthoc_0.10", device="cpu")
    assert (loaded.step, loaded.posthoc.width) == (6, 0.1)
    words = [f"ckpt={run}", "weights=posthoc_0.10", "prompts=[a large red star on a black background]", "device=cpu"]
    generate(composed("generate", [*words, f"out={tmp_path / 'samples'}", "recipe.steps=2"]))
    assert "note: posthoc_0.10: width 0.1 at step 6, from 12 snapshots" in capsys.readouterr().err
    raw, same = (
        dit.load(run, weights=name, device="cpu").pipeline.backbone.state_dict() for name in ("raw", "posthoc_0.1")
    )
    ours = loaded.pipeline.backbone.state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in ours.items())
    assert any(not torch.equal(tensor, raw[name]) for name, tensor in ours.items())


def test_an_exported_model_has_the_average(tmp_path, capsys):
    run = class_run(tmp_path, "run", "trainer.max_steps=3", "callbacks.posthoc_ema.every=1")
    export(composed("export", [f"ckpt={run}", f"out={tmp_path / 'out'}", "weights=posthoc_0.1"]))
    assert "note: posthoc_0.1: width 0.1 at step 3, from 6 snapshots" in capsys.readouterr().err
    written = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")["pos_embed.proj.bias"]
    loaded = {name: dit.load(run, weights=name, device="cpu").pipeline.backbone for name in ("posthoc_0.1", "raw")}
    biases = {name: net.state_dict()["patches.project.bias"] for name, net in loaded.items()}
    assert torch.equal(written, biases["posthoc_0.1"])
    assert not torch.equal(written, biases["raw"])


def test_an_earlier_checkpoint_has_the_average_of_its_step(run):
    assert dit.load(run / "checkpoints" / "step_0000004.ckpt", weights="posthoc_0.10", device="cpu").step == 4


def test_a_width_outside_the_range_is_refused_in_one_line(run):
    said = only_line_of(command("evaluate.py", f"ckpt={run}", "weights=[ema,posthoc_0.3]", *SMALL))
    assert said == "error: weights=posthoc_0.3: its width must lie in [0.03, 0.2]; choose one that does"
