"""The options of the trainer: in steps, epochs and accumulated batches."""

import csv
import json

import pytest
import torch

from dit.checkpoints.native import averages_of, checkpoints_of, read_checkpoint
from dit.training.diffusion import DiffusionModule
from dit.training.trainer import REFUSED, trainer_options

from ..conftest import train_tiny


def rows(run):
    return list(csv.DictReader(open(run / "metrics.csv")))


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({"max_steps": 7, "max_epochs": None}, 7),
        ({"max_steps": 700, "max_epochs": 3}, 15),  # 40 pictures are 5 batches of 8
        ({"max_steps": 7, "max_epochs": 3}, 7),
        ({"max_steps": -1, "max_epochs": 2}, 10),
    ],
)
def test_training_ends_at_whichever_is_first(given, steps):
    options = trainer_options(given, pictures=40, batch_size=8)
    assert options["max_steps"] == steps
    assert "max_epochs" not in options


def test_an_epoch_is_rounded_up_to_whole_steps():
    assert trainer_options({"max_steps": -1, "max_epochs": 2}, pictures=41, batch_size=8)["max_steps"] == 12


def test_validation_counts_optimizer_steps():
    options = {"max_steps": 9, "val_check_interval": 50, "accumulate_grad_batches": 4}
    assert trainer_options(options, 40, 8)["val_check_interval"] == 200


@pytest.mark.parametrize("name", REFUSED)
def test_an_option_that_would_do_nothing_or_harm_is_refused(name):
    with pytest.raises(ValueError, match=rf"trainer\.{name}=2 cannot be set"):
        trainer_options({"max_steps": 9, name: 2}, 40, 8)
    assert name not in trainer_options({"max_steps": 9, name: None}, 40, 8)


@pytest.mark.parametrize(
    "wrong",
    [{"max_steps": 0}, {"max_steps": None}, {"max_epochs": 0}, {"val_check_interval": 0.5}, {"val_check_interval": 0}],
    ids=str,
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=rf"trainer\.{next(iter(wrong))}"):
        trainer_options({"max_steps": 9} | wrong, 40, 8)


def test_max_epochs_ends_the_run_and_its_schedule(tmp_path):
    run = train_tiny(tmp_path / "run", "++data.module.train_limit=20", "trainer.max_epochs=1", "trainer.max_steps=100",
                     "lr_schedule.warmup=1", "lr_schedule.decay=1.0", "optimizer.lr=0.003")  # fmt: skip
    assert json.loads((run / "summary.json").read_text())["steps"] == 3
    checkpoint = read_checkpoint(run / "checkpoints" / "step_0000002.ckpt")
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0.003 / 3)


def test_accumulation_gives_the_same_steps(tmp_path):
    """The same weights, averages and logged losses, and validation at the same steps; also with stratified times."""
    words = ["objective.stratified=true", "trainer.max_steps=4", "trainer.val_check_interval=2"]
    plain = train_tiny(tmp_path / "plain", *words)
    parts = train_tiny(tmp_path / "parts", *words, "trainer.accumulate_grad_batches=4")
    for name in ("train/loss", "val/loss"):
        ours, theirs = ([row["step"] + ":" + row[name] for row in rows(run) if row[name]] for run in (parts, plain))
        assert [pair.split(":")[0] for pair in ours] == [pair.split(":")[0] for pair in theirs]
        values = [[float(pair.split(":")[1]) for pair in pairs] for pairs in (ours, theirs)]
        assert values[0] == pytest.approx(values[1], rel=1e-4)
    ours, theirs = (read_checkpoint(checkpoints_of(run)[0]) for run in (parts, plain))
    assert ours["global_step"] == theirs["global_step"] == 4
    for one, other in ((ours, theirs), *zip(averages_of(ours).values(), averages_of(theirs).values(), strict=True)):
        for key, weight in (other.get("state_dict") or other).items():
            torch.testing.assert_close((one.get("state_dict") or one)[key], weight, atol=2e-4, rtol=0)


@pytest.mark.slow
def test_a_resumed_run_may_accumulate_otherwise(tmp_path):
    """Three steps of two parts are six batches, which is no multiple of four: the fourth step must not be cut short."""
    whole = train_tiny(tmp_path / "whole")
    words = ["callbacks.checkpoints.every=3", "trainer.max_steps=6"]
    train_tiny(tmp_path / "run", *words[:1], "trainer.max_steps=3", "trainer.accumulate_grad_batches=2")
    run = train_tiny(tmp_path / "run", *words, "resume=auto", "trainer.accumulate_grad_batches=4")
    assert [float(row["train/loss"]) for row in rows(run)] == [
        pytest.approx(float(row["train/loss"]), rel=1e-3) for row in rows(whole)
    ]


def test_a_picture_that_a_batch_holds_twice_has_two_draws_of_noise(tmp_path, monkeypatch):
    draw, drawn = DiffusionModule.draw, []

    def watched(module, batch, part=None):
        drawn.extend(zip(batch.epoch.tolist(), batch.index.tolist(), batch.noise, strict=True))
        return draw(module, batch, part)

    monkeypatch.setattr(DiffusionModule, "draw", watched)
    quiet = ["++data.module.train_limit=4", "trainer.val_check_interval=100"]
    train_tiny(tmp_path / "run", *quiet, "trainer.max_steps=2")
    assert len(drawn) == 16  # two batches of eight: each picture is met twice in each
    assert len({index for _, index, _ in drawn}) == 4
    assert len({tuple(eps.flatten()[:4].tolist()) for _, _, eps in drawn}) == 16
    met = {(epoch, index): eps for epoch, index, eps in drawn}
    drawn.clear()
    train_tiny(tmp_path / "other", *quiet, "trainer.max_steps=4", "batch_size=4", "trainer.accumulate_grad_batches=2")
    assert {(epoch, index) for epoch, index, _ in drawn} == met.keys()
    assert all(torch.equal(eps, met[epoch, index]) for epoch, index, eps in drawn)
