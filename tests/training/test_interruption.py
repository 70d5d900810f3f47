"""Runs that are ended before their last step, by a signal or by time, and resuming them."""

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import time

import pytest
import torch

from dit.checkpoints.native import checkpoints_of, read_checkpoint
from dit.training.diffusion import DiffusionModule
from dit.training.previews import Previews

from ..conftest import train_tiny


def same_run(run, whole):
    """Bit-exact: losses at each step, validation at the same steps, and the last checkpoint."""
    ours, theirs = (
        [(row["step"], row["train/loss"], row["val/loss"]) for row in csv.DictReader(open(r / "metrics.csv"))]
        for r in (run, whole)
    )
    assert ours == theirs
    ours, theirs = (read_checkpoint(checkpoints_of(r)[0])["state_dict"] for r in (run, whole))
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())


def signalled(monkeypatch, number, step, part=0):
    """A signal arrives within a step, in an accumulated batch of it."""
    real = DiffusionModule.training_step

    def step_with_a_signal(module, batches, batch):
        if module.global_step == step - 1 and batch % module.trainer.accumulate_grad_batches == part:
            os.kill(os.getpid(), number)
        return real(module, batches, batch)

    monkeypatch.setattr(DiffusionModule, "training_step", step_with_a_signal)


@pytest.mark.parametrize("step", [2, 3])  # a checkpoint is due anyway, or a validation
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_after_its_step_and_resume_continues_exactly(
    tiny_run, tmp_path, monkeypatch, capsys, number, status, step
):
    with monkeypatch.context() as patch:
        signalled(patch, number, step)
        before = signal.getsignal(number)
        with pytest.raises(SystemExit) as ended:
            train_tiny(tmp_path / "run")
    assert ended.value.code == status
    assert signal.getsignal(number) == before
    run = tmp_path / "run"
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == (f"stopped by {number.name} at step_000000{step}; repeat the command with resume={run} to go on")
    assert not (run / "summary.json").exists()
    assert checkpoints_of(run)[0].stem == f"step_000000{step}"
    train_tiny(run, "resume=auto")
    same_run(run, tiny_run)
    assert json.loads((run / "summary.json").read_text())["steps"] == 6


def test_a_run_without_validation_resumes_with_the_right_steps(tmp_path, monkeypatch):
    never = "+trainer.limit_val_batches=0"
    whole = train_tiny(tmp_path / "whole", never)
    with monkeypatch.context() as patch:
        signalled(patch, signal.SIGTERM, step=3)
        with pytest.raises(SystemExit):
            train_tiny(tmp_path / "run", never)
    run = train_tiny(tmp_path / "run", never, "resume=auto")
    ours, theirs = (
        [(row["step"], row["train/loss"]) for row in csv.DictReader(open(folder / "metrics.csv"))]
        for folder in (run, whole)
    )
    assert ours == theirs


def test_a_signal_between_accumulated_batches_waits_for_the_step(tmp_path, monkeypatch):
    parts = "trainer.accumulate_grad_batches=4"
    whole = train_tiny(tmp_path / "whole", parts)
    with monkeypatch.context() as patch:
        signalled(patch, signal.SIGTERM, step=3, part=1)
        with pytest.raises(SystemExit):
            train_tiny(tmp_path / "run", parts)
    same_run(train_tiny(tmp_path / "run", parts, "resume=auto"), whole)


def test_a_signal_to_all_processes_does_not_end_the_loaders_workers(tmp_path, monkeypatch):
    """As SLURM sends it: the rest of the step needs batches that the workers have not sent yet."""
    real = DiffusionModule.training_step
    words = ["data.module.workers=2", "trainer.accumulate_grad_batches=4"]

    def step_with_signals(module, batches, batch):
        if module.global_step == 2 and batch % 4 == 0:
            workers = multiprocessing.active_children()
            assert len(workers) >= 2
            for pid in [*(worker.pid for worker in workers), os.getpid()]:
                subprocess.run(["kill", "-TERM", str(pid)], check=True)
            time.sleep(0.5)
            assert all(worker.is_alive() for worker in workers)
        return real(module, batches, batch)

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionModule, "training_step", step_with_signals)
        with pytest.raises(SystemExit) as ended:
            train_tiny(tmp_path / "run", *words)
    assert ended.value.code == 143
    assert checkpoints_of(tmp_path / "run")[0].stem == "step_0000003"
    assert multiprocessing.active_children() == []
    same_run(train_tiny(tmp_path / "run", *words, "resume=auto"), train_tiny(tmp_path / "whole", words[1]))


def test_a_signal_while_a_run_is_scored_leaves_it_unfinished(tiny_run, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(Previews, "on_fit_end", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit) as ended:
            train_tiny(tmp_path / "run", "callbacks.previews.every=10")
    assert ended.value.code == 143
    assert "at step_0000006" in capsys.readouterr().err
    assert not (tmp_path / "run" / "summary.json").exists()
    run = train_tiny(tmp_path / "run", "resume=auto")
    assert json.loads((run / "summary.json").read_text())["steps"] == 6


def test_a_signal_before_the_first_step_says_that_nothing_is_left(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(DiffusionModule, "on_fit_start", lambda _: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(SystemExit) as ended:
        train_tiny(tmp_path / "run")
    assert ended.value.code == 130
    assert "stopped by SIGINT before any checkpoint" in capsys.readouterr().err


def test_max_time_ends_each_start_of_a_run_and_does_not_finish_it(tiny_run, tmp_path, capsys):
    run = tmp_path / "run"
    for step in (1, 2):
        assert train_tiny(run, "resume=auto", "trainer.max_time='00:00:00:00'") == run
        assert f"stopped by trainer.max_time at step_000000{step}; repeat" in capsys.readouterr().err
        assert not (run / "summary.json").exists()
    train_tiny(run, "resume=auto", "trainer.max_time={hours: 1}")
    same_run(run, tiny_run)
    assert (run / "summary.json").is_file()
