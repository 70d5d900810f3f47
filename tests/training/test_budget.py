"""A budget of minutes: its laws, and that a run keeps its values."""

import hashlib
import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from dit.checkpoints.native import CONFIG, find_checkpoint, read_checkpoint
from dit.cli.train import train
from dit.encoders.autoencoder import PretrainedAutoencoder
from dit.runs import load_run
from dit.training import budget, fitted_autoencoder
from dit.training.budget import LEAST_STEPS, MODELS, Plan, planned
from dit.training.run_directory import OPEN, same_config

from ..conftest import composed

SECONDS = {model: 0.1 * 2.5**place for place, model in enumerate(MODELS)}  # of a step
MACHINE = {model: lambda s=s: s for model, s in SECONDS.items()}
QUICK = ["batch_size=8", "trainer.accelerator=cpu", "recipe.steps=2", "wandb.mode=disabled", "data.template=a *"]


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """40 small drawings of two classes."""
    root, draw = tmp_path_factory.mktemp("drawings"), np.random.default_rng(0)
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        (root / name).mkdir()
        for i in range(20):
            picture = Image.new("RGB", (16, 16), "white")
            left, top = draw.integers(0, 8, 2).tolist()
            picture.paste(colour, (left, top, left + 8, top + 8))
            picture.save(root / name / f"{i}.png")
    return root


def command(drawings, folder, *words):
    places = [f"data.path={drawings}", f"run_dir={folder}", f"cache_dir={folder.parent / 'cache'}"]
    experiment = [] if any(word.startswith("experiment=") for word in words) else ["experiment=folder"]
    return composed("train", [*experiment, "data.size=16", "data.val_share=0.2", *QUICK, *places, *words])


@pytest.fixture
def one_second_a_step(monkeypatch):
    """A machine that takes a second for a step of any model, and counts how often it was measured."""
    calls = []
    monkeypatch.setattr(budget, "seconds_of_step", lambda cfg, model, captions: calls.append(model) or 1.0)
    return calls


def test_more_time_gives_no_smaller_model_and_no_fewer_steps_to_the_same():
    plans = [planned(seconds, 10**9, MACHINE) for seconds in np.geomspace(0.01, 1e6, 200)]
    for less, more in pairwise(plans):
        assert (more.width, more.depth) >= (less.width, less.depth)
        if more.width == less.width:
            assert more.steps >= less.steps
    assert {(p.width, p.depth) for p in plans} == set(MODELS)


def test_the_time_is_used_and_not_exceeded():
    for seconds in (200, 1000, 5000):
        plan = planned(seconds, 10**9, MACHINE)
        one = SECONDS[plan.width, plan.depth]
        assert seconds - one < plan.steps * one <= seconds


def test_a_model_is_as_large_as_gets_the_least_steps():
    assert planned(SECONDS[MODELS[2]] * LEAST_STEPS * 1.01, 10**9, MACHINE).width == MODELS[2][0]
    assert planned(SECONDS[MODELS[2]] * LEAST_STEPS * 0.99, 10**9, MACHINE).width == MODELS[1][0]
    assert planned(0.001, 10**9, MACHINE) == Plan(*MODELS[0], 1)


def test_few_pictures_are_not_met_more_often_than_the_bound():
    assert planned(1e6, 300, MACHINE).steps == 300


@pytest.mark.parametrize("steps", [1, 10, 1000, 100_000])
def test_what_follows_from_the_steps_is_in_range(steps):
    values = Plan(128, 4, steps).values()
    assert set(values) == set(OPEN)
    assert 0 < values["callbacks.ema.decay"] < 1
    assert 1 <= values["lr_schedule.warmup"] <= max(steps, 1)
    assert 1 <= values["trainer.val_check_interval"] <= steps


@pytest.mark.parametrize("width", [16, 32, 100, 128, 384])
def test_heads_divide_the_width(width):
    assert width % Plan(width, 4, 100).values()["backbone.heads"] == 0


def test_what_was_decided_is_recorded_and_resumed_without_measuring(drawings, tmp_path, one_second_a_step, capsys):
    folder = train(command(drawings, tmp_path / "run", "budget_minutes=0.15"))
    assert one_second_a_step
    assert "0.15 minutes for" in capsys.readouterr().err
    config = OmegaConf.load(folder / "config.yaml")
    decided = {key: OmegaConf.select(config, key) for key in OPEN}
    assert None not in decided.values()
    assert decided["backbone.width"] == MODELS[0][0]
    assert 0 < decided["trainer.max_steps"] <= 0.15 * 60 * budget.SHARE
    stamped = OmegaConf.create(read_checkpoint(find_checkpoint(folder)[0])[CONFIG])
    assert {key: OmegaConf.select(stamped, key) for key in OPEN} == decided
    assert same_config(folder, command(drawings, folder, "budget_minutes=0.15"))  # which resume=auto looks for
    assert not same_config(folder, command(drawings, folder, "budget_minutes=0.15", "backbone.width=32"))
    one_second_a_step.clear()
    (folder / budget.FILE).unlink()  # a checkpoint is enough
    again = train(command(drawings, folder, "budget_minutes=0.15", f"resume={folder}"))
    assert again == folder
    assert not one_second_a_step
    config = OmegaConf.load(folder / "config.yaml")
    assert {key: OmegaConf.select(config, key) for key in OPEN} == decided


def test_a_start_before_the_first_checkpoint_keeps_what_was_decided(drawings, tmp_path, one_second_a_step):
    """And so do further processes of the run, which read the same file."""
    (tmp_path / "run").mkdir()
    first, second = (command(drawings, tmp_path / "run", "budget_minutes=0.15") for _ in range(2))
    budget.prepare(first, tmp_path / "run")
    one_second_a_step.clear()
    budget.prepare(second, tmp_path / "run")
    assert second == first
    assert not one_second_a_step
    other = command(drawings, tmp_path / "run", "budget_minutes=0.3")
    budget.prepare(other, tmp_path / "run")
    assert one_second_a_step
    assert other.trainer.max_steps > first.trainer.max_steps


def test_given_steps_measure_nothing(drawings, tmp_path, one_second_a_step):
    cfg = command(drawings, tmp_path / "run", "trainer.max_steps=40", "backbone.width=64")
    budget.prepare(cfg, tmp_path)
    assert not one_second_a_step
    assert (cfg.backbone.width, cfg.backbone.heads, cfg.trainer.max_steps, cfg.lr_schedule.warmup) == (64, 2, 40, 2)
    assert not (tmp_path / budget.FILE).exists()


def test_a_run_of_the_decided_numbers_is_the_same_run(drawings, tmp_path, monkeypatch):
    """Measuring does not change the random numbers of the run."""
    monkeypatch.setattr(budget, "planned", lambda seconds, most, models: (models[MODELS[0]](), Plan(*MODELS[0], 4))[1])
    measured = train(command(drawings, tmp_path / "measured", "budget_minutes=1"))
    monkeypatch.undo()
    given = train(command(drawings, tmp_path / "given", "trainer.max_steps=4", "backbone.width=96"))
    losses = [json.loads((run / "summary.json").read_text())["val/loss"] for run in (measured, given)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("size", "advised"), [(32, False), (64, True)])
def test_latents_are_advised_for_large_pictures(drawings, tmp_path, one_second_a_step, capsys, size, advised):
    cfg = command(drawings, tmp_path / "run", "budget_minutes=1", f"data.size={size}")
    (tmp_path / "run").mkdir()
    budget.prepare(cfg, tmp_path / "run")
    assert ("experiment=folder_latents" in capsys.readouterr().err) == advised


@pytest.mark.parametrize("minutes", ["0", "-1", "null", "true", ".nan", "soon"])
def test_an_invalid_budget_is_refused(drawings, tmp_path, minutes):
    with pytest.raises(ValueError, match="budget_minutes"):
        budget.prepare(command(drawings, tmp_path / "run", f"budget_minutes={minutes}"), tmp_path)


LATENTS = ["experiment=folder_latents", "fit_autoencoder.steps=2", "trainer.max_steps=2", "backbone.width=32"]


def test_a_run_brings_its_fitted_autoencoder_along(drawings, tmp_path, monkeypatch):
    """It is fitted once for two runs, copied into the directory of each, and used to sample and resume the run."""
    fitted = []
    monkeypatch.setattr(
        fitted_autoencoder, "fit_now", lambda *args, fit=fitted_autoencoder.fit_now: fitted.append(1) or fit(*args)
    )
    first = train(command(drawings, tmp_path / "first", *LATENTS))
    second = train(command(drawings, tmp_path / "second", *LATENTS, "seed=0", "optimizer.lr=1e-3"))
    assert len(fitted) == 1
    weights = [digests(run / "autoencoder") for run in (first, second)]
    assert weights[0] == weights[1] == digests(Path(OmegaConf.load(first / "config.yaml").autoencoder.path))
    shutil.rmtree(tmp_path / "cache")
    moved = second.rename(tmp_path / "moved")
    pipeline = load_run(moved, device="cpu").pipeline
    assert pipeline.autoencoder.fingerprint == PretrainedAutoencoder(str(first / "autoencoder")).fingerprint
    train(command(drawings, first, *LATENTS, "trainer.max_steps=3", f"resume={first}"))
    assert len(fitted) == 1
    assert json.loads((first / "summary.json").read_text())["steps"] == 3
    shutil.rmtree(moved / "autoencoder")
    with pytest.raises(ValueError, match="autoencoder of this run, is missing"):
        load_run(moved, device="cpu")


def digests(folder):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.mark.parametrize("wrong", ["steps=soon", "share=2.0", "+layers=3", "channels=0"])
def test_invalid_settings_of_a_fit_are_refused(drawings, tmp_path, wrong):
    word = f"+fit_autoencoder.{wrong[1:]}" if wrong.startswith("+") else f"fit_autoencoder.{wrong}"
    with pytest.raises(ValueError, match="fit_autoencoder"):
        budget.prepare(command(drawings, tmp_path / "run", *LATENTS, word), tmp_path)
