"""The command line as a user meets it: help, misspelt words, and one line for each mistake."""

import pytest

from ..conftest import command, only_line_of


@pytest.mark.parametrize("words", [["train.py"], ["evaluate.py"], ["-m", "dit.cli.generate"]])
def test_help_teaches_and_is_quick(words):
    told = command("-X", "importtime", *words, "--help")
    assert told.returncode == 0, told.stderr
    assert "Try:" in told.stdout
    assert "sampler: ddim, dpmpp_2m, euler, heun" in told.stdout
    imported = {line.rsplit("|")[-1].strip() for line in told.stderr.splitlines()}
    assert "hydra" in imported
    assert not imported & {"torch", "lightning", "diffusers", "wandb"}


@pytest.mark.parametrize(("words", "parts"), [
    (["experiment=shape"], ["experiment=shape", "'shapes'"]),
    (["optimizer.lrr=1"], ["optimizer.lrr", "'optimizer.lr'"]),
    (["+optimizer.lrr=1"], ["optimizer.lrr", "'optimizer.lr'"]),
    (["++trainer.max_step=1"], ["trainer.max_step", "'trainer.max_steps'"]),
    (["bach_size=3"], ["bach_size", "'batch_size'"]),
    (["optimiser=adamw"], ["optimiser", "'optimizer'"]),
    (["+experimnt=digits"], ["experimnt", "'experiment'"]),
    (["batch_size=many"], ["batch_size=many", "number such as 32"]),
    (["compile=2"], ["compile=2", "true or false"]),
    (["batch_size"], ["batch_size", "key=value"]),
    (["-m", "seed=0,1", "sampler=euler,huen"], ["sampler=huen", "'heun'"]),
])  # fmt: skip
def test_a_misspelt_word_ends_in_one_line_with_the_nearest_right_one(words, parts):
    line = only_line_of(command("train.py", *words))
    for part in parts:
        assert part in line


def test_plus_reaches_every_real_option_of_a_target():
    told = command("train.py", "+trainer.fast_dev_run=true", "--cfg", "job")
    assert told.returncode == 0, told.stderr
    from dit.cli.front import first_fault

    assert first_fault("train", ["+trainer.fast_dev_run=true", "+callbacks.ema.decay=0.9", "seed=3"]) is None
    assert "fast_dev_rum" in first_fault("train", ["+trainer.fast_dev_rum=true"])


@pytest.mark.parametrize(("words", "parts"), [
    (["batch_size=-2"], ["batch_size=-2"]),
    (["recipe.steps=0"], ["steps=0"]),
    (["optimizer.lr=-1"], ["-1"]),
    (["runs_dir=/dev/null/runs"], ["/dev/null/runs", "run_dir=DIR"]),
    (["experiment=folder", "data.path=/no/such"], ["/no/such", "no such folder"]),
    (["wandb.mode=online"], ["WANDB_API_KEY"]),
    (["resume=/no/such/run"], ["/no/such/run"]),
    (["autoencoder=kl", "autoencoder.path=/no/vae"], ["/no/vae", "shapes_autoencoder"]),
    (["autoencoder=kl"], ["autoencoder.path"]),
    (["task=paint"], ["task='paint'", "diffusion"]),
])  # fmt: skip
def test_a_wrong_value_ends_in_one_line(words, parts, tmp_path):
    """In this process, as the front door would: what it turns into one line."""
    import sys

    from dit.cli.front import front_door

    places = [] if any("runs_dir" in w for w in words) else [f"run_dir={tmp_path / 'run'}"]
    places += [f"cache_dir={tmp_path / 'cache'}"]
    small = ["data.module.train.count=16", "data.module.val.count=8"] if "experiment=folder" not in words else []
    wandb = [] if "wandb.mode=online" in words else ["wandb.mode=disabled"]
    told = refused(["train.py", *places, *small, *wandb, "trainer.accelerator=cpu", *words], front_door, sys)
    for part in parts:
        assert part in told


def refused(argv, front_door, sys):
    import contextlib
    import io

    stderr, old = io.StringIO(), sys.argv
    sys.argv = argv
    try:
        with contextlib.redirect_stderr(stderr), pytest.raises(SystemExit) as stopped:
            front_door("train", "dit.cli.train:train")
    finally:
        sys.argv = old
    assert stopped.value.code == 2
    lines = [line for line in stderr.getvalue().splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, stderr.getvalue()
    assert "Traceback" not in stderr.getvalue()
    return lines[0]
