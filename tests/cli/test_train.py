"""Training at the command line: kill and resume, several processes, sweeps, full disks."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from dit.checkpoints.native import averages_of, checkpoints_of, newest_checkpoint, read_checkpoint
from dit.cli.train import train
from dit.data.shapes import Shapes
from dit.encoders.autoencoder import PretrainedAutoencoder
from dit.training import run_directory
from dit.types import from_pixels

from ..conftest import ROOT, SCORED, TINY, command, composed, only_line_of, train_tiny


def losses(run: Path) -> dict[int, str]:
    return {int(row["step"]): row["train/loss"] for row in csv.DictReader(open(run / "metrics.csv"))}


def places(folder: Path) -> list[str]:
    return [f"run_dir={folder}", f"cache_dir={folder.parent / 'cache'}"]


LONGER = [
    "trainer.max_steps=240",
    "trainer.val_check_interval=25",
    "callbacks.previews.every=40",
    "callbacks.checkpoints.every=10",
    "data.flip=true",
]


def test_kill_and_resume_is_exact_to_the_bit(tmp_path):
    """kill -9 at any step; then `resume=auto` must continue exactly."""
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
    output = command("train.py", *TINY, *places(killed), *LONGER, "resume=auto")
    assert output.returncode == 0, output.stderr
    assert f"resuming {path} at step {before['global_step']}" in output.stderr
    expected, resumed = losses(whole), losses(killed)
    assert all(expected[step] == loss for step, loss in resumed.items())
    assert set(range(before["global_step"] + 1, 241)) <= set(resumed)
    ours, theirs = (read_checkpoint(checkpoints_of(run)[0]) for run in (killed, whole))
    assert ours["global_step"] == theirs["global_step"] == 240
    [decay] = averages_of(theirs)
    for name, weight in averages_of(theirs)[decay].items():
        assert torch.equal(averages_of(ours)[decay][name], weight), name
    for name, weight in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][name], weight), name


KILLED_AT = """
import os, sys
from dit.cli.front import front_door
from {module} import {kind}
{kind}.{hook} = lambda *_: os.kill(os.getpid(), 9)
front_door("train", "dit.cli.train:train")
"""


def killed_at(module: str, kind: str, hook: str, *words: str) -> None:
    """Trains until a hook of a class is called and kills the process."""
    output = command("-c", KILLED_AT.format(module=module, kind=kind, hook=hook), *words)
    assert output.returncode == -signal.SIGKILL, output.stderr


def test_a_run_killed_while_it_was_scored_has_but_the_score_left(tiny_run, tmp_path, capsys):
    run = tmp_path / "run"
    killed_at("dit.training.previews", "Previews", "on_fit_end", *TINY, *places(run), "callbacks.previews.every=10")
    assert not (run / "summary.json").exists()
    train_tiny(run, "resume=auto")
    assert "at step 6" in capsys.readouterr().err
    ours, whole = (json.loads((r / "summary.json").read_text()) for r in (run, tiny_run))
    assert list(ours) == list(whole)
    measured = {"train_seconds", "images_per_second", "data_seconds"}
    assert all(ours[name] == whole[name] for name in whole.keys() - measured)
    assert 0 < ours["train_seconds"] < 60
    assert ours["images_per_second"] == pytest.approx(6 * 8 / ours["train_seconds"])
    assert (run / "samples" / "step_0000006.png").is_file()


def test_an_autoencoder_killed_before_it_was_written_is_written_on_resuming(tmp_path):
    run = tmp_path / "run"
    words = [
        "experiment=shapes_autoencoder",
        "debug=one_batch",
        "trainer.accelerator=cpu",
        "batch_size=4",
        *places(run),
    ]
    words += ["data.module.train.count=16", "data.module.val.count=8"]
    killed_at("dit.training.autoencoder", "AutoencoderModule", "on_fit_end", *words)
    train(composed("train", [*words, "resume=auto"]))
    output = json.loads((run / "autoencoder" / "config.json").read_text())
    coder = PretrainedAutoencoder(str(run / "autoencoder"))
    z = coder.encode(from_pixels(torch.from_numpy(Shapes("val", 8).images(np.arange(8)))))
    assert output["scaling_factor"] != 1
    assert z.mean().item() == pytest.approx(0, abs=0.02)
    assert z.std().item() == pytest.approx(1, abs=0.02)


def test_a_broken_newest_checkpoint_falls_back_with_a_warning(tiny_run, tmp_path, capsys):
    run = train_tiny(tmp_path / "run", "trainer.max_steps=4")
    newest, before = checkpoints_of(run)[:2]
    newest.write_bytes(newest.read_bytes()[:1000])
    (run / "summary.json").unlink()
    train_tiny(run, "resume=auto")
    output = capsys.readouterr().err
    assert f"warning: checkpoint {newest} is broken" in output
    assert f"resuming {before} at step 2" in output
    assert losses(run) == losses(tiny_run)


def test_resume_auto_without_anything_starts_afresh(tmp_path, capsys):
    run = train_tiny(tmp_path / "run", "resume=auto", "trainer.max_steps=3")
    assert "nothing to resume" in capsys.readouterr().err
    assert max(losses(run)) == 3


@pytest.mark.parametrize(
    ("resume", "fault"), [("width", "backbone.width=32, not 64: this cannot"), ("foreign", "not a checkpoint of dit")]
)
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
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_0000001.ckpt"]
    assert newest_checkpoint(tmp_path / "run")[1]["global_step"] == 1


@pytest.mark.slow
def test_two_processes_train_as_one_does(tiny_run, scored_run, tmp_path):
    """`trainer=ddp` over gloo: the same batches, noise and losses, up to the order of summation, and the same scores."""
    output = command("train.py", *TINY, *SCORED, *places(tmp_path / "ddp"), "trainer=ddp", "trainer.max_steps=6",
                   "trainer.val_check_interval=3", "trainer.log_every_n_steps=1", "trainer.accelerator=cpu")  # fmt: skip
    assert output.returncode == 0, output.stderr
    run = Path(output.stdout.splitlines()[-1])
    assert run == tmp_path / "ddp"
    ours, theirs = (read_checkpoint(checkpoints_of(r)[0]) for r in (run, tiny_run))
    for name, weight in theirs["state_dict"].items():
        torch.testing.assert_close(ours["state_dict"][name], weight, atol=2e-4, rtol=0)
    expected = losses(tiny_run)
    assert {step: float(loss) for step, loss in losses(run).items()} == {
        step: pytest.approx(float(loss), rel=1e-3) for step, loss in expected.items()
    }
    scores, whole = (json.loads((r / "summary.json").read_text()) for r in (run, tiny_run))
    assert {k: v for k, v in scores.items() if "accuracy" in k and "score/" not in k} == {
        k: v for k, v in whole.items() if "accuracy" in k
    }
    lines, one = ([json.loads(line) for line in open(r / "scores.jsonl")] for r in (run, scored_run))
    assert [line["step"] for line in lines] == [line["step"] for line in one] == [2, 4, 6]
    for line, expected in zip(lines, one, strict=True):
        assert line["protocol"] == expected["protocol"]
        assert line["scores"] == {name: pytest.approx(value, rel=1e-3) for name, value in expected["scores"].items()}


@pytest.mark.slow
def test_a_sweep_gives_each_job_its_own_directory_and_one_group(tmp_path):
    words = ["-m", *TINY, f"runs_dir={tmp_path}", f"cache_dir={tmp_path / 'cache'}", "optimizer.lr=1e-3,2e-3",
             "trainer.max_steps=1", "closing_prompts=1", "callbacks.checkpoints.every=1"]  # fmt: skip
    output = command("train.py", *words, "seed=0,1", "wandb.mode=offline")
    assert output.returncode == 0, output.stderr
    runs = sorted(p.parent for p in tmp_path.rglob("summary.json"))
    assert [run.name for run in runs] == ["0", "1", "2", "3"]
    assert len({run.parent for run in runs}) == 1
    from omegaconf import OmegaConf

    configs = [OmegaConf.load(run / "config.yaml") for run in runs]
    assert {(c.seed, c.optimizer.lr) for c in configs} == {(s, lr) for s in (0, 1) for lr in (1e-3, 2e-3)}
    for run in runs:
        assert len(list(run.glob("wandb/offline-run-*"))) == 1
    assert output.stdout.splitlines()[-1] == str(runs[0].parent / "overview")
    assert re.search(r"^2e-3 +2 ", output.stdout, re.MULTILINE)
    assert len(list(runs[0].parent.glob("wandb/offline-run-*"))) == 1, "the table of the sweep"

    (runs[1] / "summary.json").unlink()
    output = command("train.py", *words, "seed=1", "resume=auto")
    assert output.returncode == 0, output.stderr
    assert f"resuming {runs[1] / 'checkpoints' / 'step_0000001.ckpt'} at step 1" in output.stderr
    assert f"{runs[3]} is finished and not repeated" in output.stderr
    assert (runs[1] / "summary.json").is_file()
    assert str(runs[3]) in output.stdout.splitlines()
    assert re.search(r"^2e-3 +1 ", output.stdout, re.MULTILINE), "the table has the runs of the sweep that it continues"


@pytest.mark.slow
def test_a_sweep_of_two_processes_each_is_one_sweep(tmp_path):
    """The processes that a job starts are of that job: run as the whole command line, they would sweep again."""
    output = command("train.py", "-m", *TINY, "trainer=ddp", "trainer.accelerator=cpu", f"runs_dir={tmp_path}",
                   f"cache_dir={tmp_path / 'cache'}", "seed=0,1", "trainer.max_steps=2")  # fmt: skip
    assert output.returncode == 0, output.stderr
    [sweep] = (tmp_path / "shapes_pixels").iterdir()
    assert sorted(p.parent.name for p in sweep.glob("*/summary.json")) == ["0", "1"]
    assert sorted(p.name for p in sweep.iterdir()) == ["0", "1", "multirun.yaml", "overview"]
    assert losses(sweep / "0") != losses(sweep / "1")
    assert str(sweep / "1") in output.stdout.splitlines()


@pytest.mark.slow
def test_the_joblib_launcher_runs_jobs_side_by_side(tmp_path):
    output = command("train.py", "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *TINY, f"runs_dir={tmp_path}",
                   f"cache_dir={tmp_path / 'cache'}", "seed=0,1", "trainer.max_steps=2")  # fmt: skip
    assert output.returncode == 0, output.stderr
    assert len(list(tmp_path.rglob("summary.json"))) == 2


def test_runs_of_one_second_have_directories_of_their_own(tmp_path):
    cfg = composed("train", [f"runs_dir={tmp_path}"])
    with ThreadPoolExecutor(8) as pool:
        chosen = list(pool.map(run_directory.choose, [cfg] * 24))
    assert len(set(chosen)) == 24
    assert {folder.parent for folder in chosen} == {tmp_path / "shapes"}
    started = Counter(folder.name[:19] for folder in chosen)
    second, count = started.most_common(1)[0]
    assert count > 1
    assert tmp_path / "shapes" / f"{second}_2" in chosen


def unfinished(run: Path, cfg) -> Path:
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "step_0000002.ckpt").touch()
    run_directory.describe(run, run_directory.plain(cfg))
    return run


def test_resume_auto_does_not_continue_another_training(tmp_path):
    cfg = composed("train", [f"runs_dir={tmp_path}", "resume=auto"])
    run = unfinished(tmp_path / "shapes" / "killed", cfg)
    assert run_directory.choose(cfg) == run
    for other in ("seed=1", "text_encoder.width=32"):
        assert run_directory.choose(composed("train", [f"runs_dir={tmp_path}", "resume=auto", other])) != run
    assert (
        run_directory.choose(composed("train", [f"runs_dir={tmp_path}", "resume=auto", "trainer.max_steps=9"])) == run
    )
    (run / "summary.json").touch()
    assert run_directory.choose(cfg) != run


def test_each_job_of_a_sweep_resumes_the_run_of_its_own_config(tmp_path, monkeypatch):
    """Wherever the job stands in the sweep, and whatever it sweeps over."""
    jobs = ["seed=1", "seed=2", "trainer.max_steps=9", "callbacks.ema.decay=0.9", "text_encoder.width=32"]
    configs = [composed("train", [f"runs_dir={tmp_path}", "resume=auto", job]) for job in jobs]
    monkeypatch.setattr(run_directory, "in_sweep", lambda: True)
    old, new = tmp_path / "shapes" / "sweep_old", tmp_path / "shapes" / "sweep_new"
    runs = [unfinished(old / str(number), cfg) for number, cfg in enumerate(configs[:-1])]
    (runs[1] / "summary.json").touch()
    monkeypatch.setattr(run_directory, "sweep_folder", lambda: new / "0")
    for number, cfg in reversed(list(enumerate(configs))):
        assert run_directory.choose(cfg) == (runs[number] if number < len(runs) else new / "0")


def test_processes_started_from_outside_must_agree(monkeypatch, tmp_path):
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "2")
            with pytest.raises(ValueError, match="run_dir=DIR"):
                run_directory.choose(composed("train", [f"runs_dir={tmp_path}"]))


def test_a_misspelt_experiment_leaves_nothing_behind(tmp_path):
    only_line_of(command("train.py", "experiment=nothing", f"runs_dir={tmp_path / 'runs'}"))
    assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_a_signal_to_the_first_of_two_processes_ends_both_after_the_same_step(tmp_path):
    run = tmp_path / "run"
    words = [*TINY, *places(run), "trainer=ddp", "trainer.accelerator=cpu", "trainer.val_check_interval=100000",
             "callbacks.previews.every=100000", "callbacks.checkpoints.every=100000"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "train.py", *words, "trainer.max_steps=100000"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    while not checkpoints_of(run) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 143, said
    newest = checkpoints_of(run)[0]
    assert f"stopped by SIGTERM at {newest.stem}; repeat the command with resume={run}" in said
    step = read_checkpoint(newest)["global_step"]
    assert step > 1
    output = command("train.py", *words, f"resume={run}", f"trainer.max_steps={step + 2}")
    assert output.returncode == 0, output.stderr
    assert set(range(1, step + 3)) == set(losses(run))
