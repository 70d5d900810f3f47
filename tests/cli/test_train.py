"""Training at the command line: kill and resume, several processes, sweeps, full disks."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dit.checkpoints.native import averaged_weights, checkpoints_of, newest_checkpoint, read_checkpoint

from ..conftest import ROOT, TINY, command, composed, only_line_of, train_tiny


def losses(run: Path) -> dict[int, str]:
    return {int(row["step"]): row["train/loss"] for row in csv.DictReader(open(run / "metrics.csv"))}


def places(folder: Path) -> list[str]:
    return [f"run_dir={folder}", f"cache_dir={folder.parent / 'cache'}"]


LONGER = [
    "trainer.max_steps=240",
    "trainer.val_check_interval=25",
    "callbacks.previews.every=40",
    "callbacks.checkpoints.every=10",
]


def test_kill_and_resume_is_exact_to_the_bit(tmp_path):
    """kill -9 at whatever step it happens to be; then `resume=auto` must walk on as if nothing had been."""
    whole = train_tiny(tmp_path / "whole", *LONGER)
    killed = tmp_path / "killed"
    words = [sys.executable, "train.py", *TINY, *places(killed), *LONGER]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(checkpoints_of(killed)) < 3 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "training ended before it could be killed"
    path, before = newest_checkpoint(killed)
    assert 0 < before["global_step"] < 240
    told = command("train.py", *TINY, *places(killed), *LONGER, "resume=auto")
    assert told.returncode == 0, told.stderr
    assert f"resuming {path} at step {before['global_step']}" in told.stderr
    expected, resumed = losses(whole), losses(killed)
    assert all(expected[step] == loss for step, loss in resumed.items())
    assert set(range(before["global_step"] + 1, 241)) <= set(resumed)
    ours, theirs = (read_checkpoint(checkpoints_of(run)[0]) for run in (killed, whole))
    assert ours["global_step"] == theirs["global_step"] == 240
    for name, weight in averaged_weights(theirs).items():
        assert torch.equal(averaged_weights(ours)[name], weight), name
    for name, weight in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][name], weight), name


def test_a_broken_newest_checkpoint_falls_back_with_a_warning(tiny_run, tmp_path, capsys):
    run = train_tiny(tmp_path / "run", "trainer.max_steps=4")
    newest, before = checkpoints_of(run)[:2]
    newest.write_bytes(newest.read_bytes()[:1000])
    (run / "summary.json").unlink()
    train_tiny(run, "resume=auto")
    told = capsys.readouterr().err
    assert f"warning: checkpoint {newest} is broken" in told
    assert f"resuming {before} at step 2" in told
    assert losses(run) == losses(tiny_run)


def test_resume_auto_without_anything_starts_afresh(tmp_path, capsys):
    run = train_tiny(tmp_path / "run", "resume=auto", "trainer.max_steps=3")
    assert "nothing to resume" in capsys.readouterr().err
    assert max(losses(run)) == 3


@pytest.mark.parametrize(("resume", "fault"), [("width", "another model"), ("foreign", "not a checkpoint of dit")])
def test_a_checkpoint_that_does_not_fit_is_refused(tiny_run, tmp_path, resume, fault):
    words = [f"resume={tiny_run}", "backbone.width=64"]
    if resume == "foreign":
        torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
        words = [f"resume={tmp_path / 'foreign.ckpt'}"]
    with pytest.raises(ValueError, match=fault):
        train_tiny(tmp_path / "run", *words)


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    real, saves = torch.save, []

    def fills_up(*args, **kwargs):
        saves.append(args)
        if len(saves) == 2:
            Path(args[1]).write_bytes(b"half a checkpoint")
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(torch, "save", fills_up)
    with pytest.raises(ValueError, match="No space left on device"):
        train_tiny(tmp_path / "run")
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_0000002.ckpt"]
    assert newest_checkpoint(tmp_path / "run")[1]["global_step"] == 2


def test_two_processes_train_as_one_does(tiny_run, tmp_path):
    """`trainer=ddp` over gloo: the same batches, noise and losses, up to the order of summation."""
    told = command("train.py", *TINY, *places(tmp_path / "ddp"), "trainer=ddp", "trainer.max_steps=6",
                   "trainer.val_check_interval=3", "trainer.log_every_n_steps=1", "trainer.accelerator=cpu")  # fmt: skip
    assert told.returncode == 0, told.stderr
    run = Path(told.stdout.splitlines()[-1])
    assert run == tmp_path / "ddp"
    ours, theirs = (read_checkpoint(checkpoints_of(r)[0]) for r in (run, tiny_run))
    for name, weight in theirs["state_dict"].items():
        torch.testing.assert_close(ours["state_dict"][name], weight, atol=2e-4, rtol=0)


def test_a_sweep_gives_each_job_its_own_directory_and_one_group(tmp_path):
    told = command("train.py", "-m", *TINY, f"runs_dir={tmp_path}", f"cache_dir={tmp_path / 'cache'}", "seed=0,1",
                   "optimizer.lr=1e-3,2e-3", "trainer.max_steps=1", "closing_prompts=1", "wandb.mode=offline")  # fmt: skip
    assert told.returncode == 0, told.stderr
    runs = sorted(p.parent for p in tmp_path.rglob("summary.json"))
    assert [run.name for run in runs] == ["0", "1", "2", "3"]
    assert len({run.parent for run in runs}) == 1
    from omegaconf import OmegaConf

    configs = [OmegaConf.load(run / "config.yaml") for run in runs]
    assert {(c.seed, c.optimizer.lr) for c in configs} == {(s, lr) for s in (0, 1) for lr in (1e-3, 2e-3)}
    for run in runs:
        assert len(list(run.glob("wandb/offline-run-*"))) == 1
    assert str(runs[-1]) == told.stdout.splitlines()[-1]


@pytest.mark.slow
def test_the_joblib_launcher_runs_jobs_side_by_side(tmp_path):
    told = command("train.py", "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *TINY, f"runs_dir={tmp_path}",
                   f"cache_dir={tmp_path / 'cache'}", "seed=0,1", "trainer.max_steps=2")  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert len(list(tmp_path.rglob("summary.json"))) == 2


def test_the_run_directory_follows_the_name_and_the_date(tmp_path):
    from dit.cli.run_directory import choose

    cfg = composed("train", [f"runs_dir={tmp_path}"])
    first = choose(cfg)
    first.mkdir(parents=True)
    assert first.parent == tmp_path / "shapes"
    assert choose(cfg) not in (first, None)


def test_resume_auto_takes_no_other_training_for_its_own(tmp_path):
    from dit.cli.run_directory import choose, describe, plain

    cfg = composed("train", [f"runs_dir={tmp_path}", "resume=auto"])
    run = tmp_path / "shapes" / "killed"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "step_0000002.ckpt").touch()
    describe(run, plain(cfg))
    assert choose(cfg) == run
    assert choose(composed("train", [f"runs_dir={tmp_path}", "resume=auto", "seed=1"])) != run
    (run / "summary.json").touch()
    assert choose(cfg) != run


def test_processes_started_from_outside_must_agree(monkeypatch, tmp_path):
    from dit.cli.run_directory import choose

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="run_dir=DIR"):
        choose(composed("train", [f"runs_dir={tmp_path}"]))


def test_a_misspelt_experiment_leaves_nothing_behind(tmp_path):
    only_line_of(command("train.py", "experiment=nothing", f"runs_dir={tmp_path / 'runs'}"))
    assert not os.listdir(tmp_path)
