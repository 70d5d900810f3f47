"""Runs that are killed at random moments, and their twins that are not: losses, weights, averages and the optimizer's
state are equal to the bit."""

import csv
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from dit.checkpoints.native import checkpoints_of, read_checkpoint

from ..conftest import ROOT, TINY

STEPS = 30  # in epochs of 4 steps, so that kills hit the ends of epochs too
RUN = [
    *TINY, f"trainer.max_steps={STEPS}", "data.module.train_limit=32", "data.module.workers=1",
    "callbacks.checkpoints.every=1", "callbacks.checkpoints.keep=2", "trainer.val_check_interval=7",
    "callbacks.previews.every=100", "callbacks.ema.decay=[0.9,0.99]", "closing_prompts=4", "resume=auto",
]  # fmt: skip
DDP = ["trainer=ddp"]


def start(run: Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, "train.py", *RUN, f"run_dir={run}", f"cache_dir={run.parent / 'cache'}", *words]
    log = (run.parent / f"{run.name}.log").open("a")
    return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})


def newest_step(run: Path) -> int:
    found = checkpoints_of(run)
    return int(found[0].stem.rpartition("_")[2]) if found else 0


def children(pid: int) -> list[int]:
    """The process's own children: loader workers, and with DDP the other ranks."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(word) for word in found.split()]


def has_word(pid: int, word: str) -> bool:
    try:
        return word.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def half_written(run: Path) -> set[Path]:
    return set((run / "checkpoints").glob(".*.tmp"))


def wait_until(condition, process: subprocess.Popen, seconds: float = 120) -> bool:
    """Waits for a condition. Returns False if the process ended first."""
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < end, "the run makes no progress"
        time.sleep(0.001)
    return True


def kill(run: Path, how: str, draw: random.Random, *words: str) -> None:
    """Starts or continues the run, and kills it at a random moment."""
    process, begin, left = start(run, *words), newest_step(run), half_written(run)
    goes_on = wait_until(lambda: newest_step(run) >= min(begin + draw.randint(1, 6), STEPS - 1), process)
    if how == "while saving":
        goes_on = wait_until(lambda: bool(half_written(run) - left), process)
    else:
        time.sleep(draw.random() * 0.2)
    if not goes_on:
        return
    others = children(process.pid)
    ranks = [pid for pid in others if has_word(pid, "train.py") and has_word(pid, "run_dir") and words]
    match how:
        case "SIGTERM":
            process.send_signal(signal.SIGTERM)
        case "a worker":
            workers = [pid for pid in others if pid not in ranks]
            os.kill(draw.choice(workers or [process.pid]), signal.SIGKILL)
        case "a rank":
            os.kill(draw.choice(ranks), signal.SIGKILL)
            process.send_signal(signal.SIGKILL)  # as torchrun does when a rank has died
        case _:
            process.kill()
    process.wait(timeout=120)
    for pid in others:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def finish(run: Path, *words: str) -> Path:
    process = start(run, *words)
    assert process.wait(timeout=240) == 0, (run.parent / f"{run.name}.log").read_text()[-3000:]
    return run


def losses(run: Path) -> list[tuple[str, ...]]:
    rows = csv.DictReader((run / "metrics.csv").open())
    return [(row["step"], row["train/loss"], row["val/loss"]) for row in rows if row["train/loss"] or row["val/loss"]]


def tensors(value, name=""):
    """All tensors of a checkpoint by their place in it."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from tensors(inner, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            yield from tensors(inner, f"{name}.{place}")


def state_of(run: Path, steps: int = STEPS) -> dict[str, torch.Tensor]:
    checkpoint = read_checkpoint(checkpoints_of(run)[0])
    assert checkpoint["global_step"] == steps
    kept = {name: checkpoint[name] for name in ("state_dict", "optimizer_states")}
    return dict(tensors(kept | {"EMA": checkpoint["callbacks"]["EMA"]}))


def assert_equal(run: Path, whole: Path, steps: int = STEPS) -> None:
    assert losses(run) == losses(whole)
    ours, theirs = state_of(run, steps), state_of(whole, steps)
    assert ours.keys() == theirs.keys()
    assert any("exp_avg" in name for name in ours)
    assert len([name for name in ours if "EMA" in name]) > 10
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize(("words", "kills"), [
    ((), ["SIGKILL", "while saving", "while saving", "SIGTERM", "a worker"]),
    (tuple(DDP), ["SIGKILL", "while saving", "a rank", "a worker", "SIGTERM"]),
    (("trainer=fsdp",), ["SIGKILL", "while saving", "a rank", "a worker", "SIGTERM"]),
], ids=["one process", "ddp", "fsdp"])  # fmt: skip
def test_a_killed_run_is_equal_to_one_that_was_not(words, kills, tmp_path):
    draw = random.Random(0)
    whole = finish(tmp_path / "whole", *words)
    run = tmp_path / "run"
    for how in kills:
        kill(run, how, draw, *words)
        assert newest_step(run) < STEPS, "the run ended before it was killed"
    assert_equal(finish(run, *words), whole)


@pytest.mark.slow
def test_a_run_may_change_its_number_of_processes(tmp_path):
    """Two processes, one, two: equal up to the order of summation."""
    whole, run = finish(tmp_path / "whole", "lr_schedule.decay=0"), tmp_path / "run"
    for end, words in [(10, DDP), (20, []), (STEPS, DDP)]:
        finish(run, *words, f"trainer.max_steps={end}", "lr_schedule.decay=0")
    for ours, theirs in itertools.zip_longest(losses(run), losses(whole)):
        assert ours[0] == theirs[0]
        assert [float(x or 0) for x in ours[1:]] == pytest.approx([float(x or 0) for x in theirs[1:]], rel=1e-4)
