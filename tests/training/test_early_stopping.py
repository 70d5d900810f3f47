"""Runs that end when the validation loss no longer falls."""

import csv
import signal

import pytest

from dit.checkpoints.native import checkpoints_of
from dit.files import read_json

from ..conftest import train_tiny
from .test_interruption import same_run, signalled

# A learning rate at which the loss soon rises, and a validation after every second step.
RISING = ["optimizer.lr=3.0", "trainer.max_steps=40", "trainer.val_check_interval=2", "trainer.gradient_clip_val=null",
          "callbacks.guard.policy=warn", "callbacks.early_stopping.patience=3", "callbacks.previews.every=null"]  # fmt: skip


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    return train_tiny(tmp_path_factory.mktemp("early") / "run", *RISING)


def test_training_ends_after_validations_without_a_lower_loss(ended):
    rows = [row for row in csv.DictReader(open(ended / "metrics.csv")) if row["val/loss"]]
    losses, steps = [float(row["val/loss"]) for row in rows], read_json(ended / "summary.json")["steps"]
    assert steps == 2 * len(losses) < 40
    assert losses.index(min(losses)) == len(losses) - 1 - 3
    assert checkpoints_of(ended)[0].stem == f"step_{steps:07d}"


def test_a_resumed_run_ends_at_the_same_step(ended, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        signalled(patch, signal.SIGTERM, 7)
        with pytest.raises(SystemExit):
            train_tiny(tmp_path / "run", *RISING)
    same_run(train_tiny(tmp_path / "run", *RISING, "resume=auto"), ended)


def test_without_validation_it_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^callbacks\.early_stopping\.patience needs the validation loss"):
        train_tiny(tmp_path / "run", *RISING, "+trainer.limit_val_batches=0")
