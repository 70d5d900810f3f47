"""Scores during training and at its end."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from dit.checkpoints.native import read_checkpoint
from dit.data.order import subset
from dit.data.shapes_checker import ShapesChecker
from dit.metrics.base import ImageMetric
from dit.runs import load_run
from dit.scoring.prompts import EncodedPrompts, held_out_prompts
from dit.scoring.references import update_references
from dit.scoring.samples import sample_prompts, score_samples
from dit.training.scores import PeriodicScore
from dit.types import to_pixels

from ..conftest import SCORED, train_tiny

CLOSING_SEED = 1_000_000


def rows(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(open(run / "metrics.csv")))


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in open(run / "scores.jsonl")]


def test_a_run_with_scores_is_the_run_without(scored_run, tiny_run):
    assert [row["train/loss"] for row in rows(scored_run)] == [row["train/loss"] for row in rows(tiny_run)]
    ours, theirs = (read_checkpoint(run / "checkpoints" / "step_0000006.ckpt") for run in (scored_run, tiny_run))
    for name, weight in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][name], weight), name
    assert not (tiny_run / "scores.jsonl").exists()


def test_the_score_is_that_of_the_checkpoint_of_its_step(scored_run, tmp_path):
    loaded = load_run(scored_run / "checkpoints" / "step_0000004.ckpt", device="cpu")
    pipeline, cfg = loaded.pipeline, loaded.config
    val = instantiate(cfg.data.module.val)
    metrics: dict[str, ImageMetric] = {name: instantiate(node) for name, node in cfg.metric.items()}
    update_references(metrics.values(), {"val": val}, {"val": 32}, tmp_path)
    prompts = held_out_prompts(val.captions, 9)
    batches = sample_prompts(pipeline, prompts, EncodedPrompts(pipeline, prompts), 0, instantiate(cfg.recipe), 128)
    result = score_samples(metrics, batches)
    expected = result.scores
    assert {"prompt_accuracy", "fd_shapes_9", "clip_shapes"} <= expected.keys()
    line = lines(scored_run)[1]
    assert line["step"] == 4
    assert line["weights"] == "ema"
    assert line["cost"]["nfe"] == result.nfe
    assert line["scores"] == expected
    logged = {name.removeprefix("score/"): float(v) for name, v in rows(scored_run)[3].items() if "score/" in name}
    assert logged == expected
    assert json.loads((scored_run / "summary.json").read_text())["score/clip_shapes"] != expected["clip_shapes"]


def test_resuming_scores_no_step_twice(scored_run, tmp_path):
    """Killed after the score of step 6 and before its checkpoint: the line is written again and replaces the old one."""
    run = tmp_path / "run"
    shutil.copytree(scored_run, run)
    (run / "summary.json").unlink()
    (run / "checkpoints" / "step_0000006.ckpt").unlink()
    text = (run / "scores.jsonl").read_text()
    (run / "scores.jsonl").write_text(text.replace('"step": 6, "weights": "ema"', '"step": 6, "weights": "old"'))
    train_tiny(run, *SCORED, "resume=auto")
    timeless = [[line | {"cost": line["cost"]["nfe"]} for line in lines(r)] for r in (run, scored_run)]
    assert timeless[0] == timeless[1]


def digits(images: torch.Tensor, prompts: list[str]) -> dict[str, np.ndarray]:
    """An attribute for every bit of a picture's sum: right or wrong as the picture has it."""
    sums = images.cpu().long().sum((1, 2, 3)) + torch.tensor([len(prompt) for prompt in prompts])
    return {f"bit{bit}": ((sums >> bit) & 1).bool().numpy() for bit in range(12)}


def test_the_closing_score_is_of_held_out_and_unseen_prompts(tmp_path, monkeypatch):
    monkeypatch.setattr(ShapesChecker, "__call__", lambda self, images, captions: digits(images, captions))
    run = train_tiny(tmp_path / "run", "trainer.max_steps=2", "trainer.val_check_interval=2", "closing_prompts=20")
    summary = json.loads((run / "summary.json").read_text())
    loaded = load_run(run, device="cpu")
    pipeline, cfg = loaded.pipeline, loaded.config
    for suffix, split, count in (("", "val", 20), ("_unseen", "unseen", 10)):
        captions = instantiate(cfg.data.module[split]).captions
        prompts = [captions[i] for i in subset(len(captions), count)]
        images = pipeline(prompts, range(CLOSING_SEED, CLOSING_SEED + count), instantiate(cfg.recipe)).images
        for name, right in digits(to_pixels(images), prompts).items():
            assert summary[f"accuracy_{name}{suffix}"] == pytest.approx(right.mean()), name


def test_a_run_that_diverges_ends_without_a_score(tmp_path, capsys):
    run = train_tiny(tmp_path / "run", *SCORED, "trainer.max_steps=2", "trainer.val_check_interval=2",
                     "optimizer.lr=1e30", "lr_schedule.warmup=1", "callbacks.guard.policy=warn")  # fmt: skip
    output = capsys.readouterr().err
    assert "warning: no score at step 2: 9 of 9 pictures are not finite" in output
    assert "warning: no score at step 2: 4 of 4 pictures" in output
    assert not any("accuracy" in name for name in json.loads((run / "summary.json").read_text()))
    assert not (run / "scores.jsonl").exists()


def test_a_closing_score_that_fails_costs_a_warning_and_not_the_summary(tmp_path, monkeypatch, capsys):
    def no_float64(self, images, captions):
        raise TypeError("this device has no float64\nand says so in two lines")

    monkeypatch.setattr(ShapesChecker, "__call__", no_float64)
    run = train_tiny(tmp_path / "run", "trainer.max_steps=2", "trainer.val_check_interval=2")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 2
    assert not any(name.startswith(("prompt_accuracy", "accuracy")) for name in summary)
    warned = [line for line in capsys.readouterr().err.splitlines() if "closing score" in line]
    assert len(warned) == 1
    assert warned[0].endswith(
        "warning: no closing score: TypeError: this device has no float64"
    )  # a bar stood before it


def test_scores_while_training_and_at_its_end_take_the_precision_of_sampling(tmp_path):
    words = ("trainer.max_steps=2", "trainer.val_check_interval=2", "sampling.precision=bf16")
    run = train_tiny(tmp_path / "run", *SCORED, *words)
    assert lines(run)[0]["protocol"]["precision"] == "bf16"


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="no metric of pictures"):
        PeriodicScore({}, None, every=1)
    for name in ("every", "n", "references", "train_references", "batch_size"):
        with pytest.raises(ValueError, match=rf"callbacks\.scores\.{name}=0 must be at least 1"):
            PeriodicScore({}, None, **{"every": 1, name: 0})
