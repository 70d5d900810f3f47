"""Chooses model size, learning rate, steps, warm-up and EMA decay from a budget of minutes. Only values that the config
leaves null are chosen, once per run: they are written to the run's config, and a resumed run uses the same values."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dit.annotations import check_value
from dit.build import build_pipeline
from dit.checkpoints.native import CONFIG, read_checkpoint
from dit.code_digest import code_digest
from dit.config import OPEN, WITHOUT_EFFECT
from dit.data.captions import all_captions
from dit.data.module import PictureData
from dit.devices import device_of
from dit.files import read_text, write_atomic
from dit.plain_values import flat, plain
from dit.training.checkpoints import checkpoint_to_resume
from dit.training.fitted_autoencoder import Fit, fitted_autoencoder
from dit.training.run_directory import create_folder, is_first
from dit.training.vocabulary import close_vocabulary
from dit.types import Draw

FILE = "budget.json"  # in the run's directory
MODELS = ((96, 4), (128, 4), (192, 6), (256, 8), (384, 12))  # width and depth, in the order of their cost
LEAST_STEPS = 2000  # if a model gets fewer, a smaller one is chosen
MOST_VISITS = 400  # epochs at most: against memorising a few hundred pictures with a budget of hours
SHARE = 0.9  # of the remaining time goes to steps; the rest to validation, previews, checkpoints and slower steps
PIXELS = 32  # up to this side length pixels were measured to be better than latents; latents at twice this side
PATH = "autoencoder.path"


@dataclass(frozen=True)
class Plan:
    """The size of a model and the steps that it gets."""

    width: int
    depth: int
    steps: int

    def values(self) -> dict[str, Any]:
        """Returns config values by key. The learning rate falls with the width, so that a step changes the outputs of a
        layer by about the same amount in every model; the EMA averages over a tenth of the run."""
        every = max(self.steps // 5, 1)
        return {
            "backbone.width": self.width,
            "backbone.depth": self.depth,
            "backbone.heads": next(h for h in range(max(self.width // 32, 1), 0, -1) if self.width % h == 0),
            "optimizer.lr": round(3e-3 * min(128 / self.width, 1), 6),
            "trainer.max_steps": self.steps,
            "trainer.val_check_interval": every,
            "lr_schedule.warmup": min(max(self.steps // 20, 1), 200),
            "callbacks.ema.decay": round(min(max(1 - 10 / self.steps, 0.5), 0.9999), 5),
        }


def planned(seconds: float, most: int, models: Mapping[tuple[int, int], Callable[[], float]]) -> Plan:
    """Returns the largest model that gets `LEAST_STEPS` within `seconds`, else the smallest, with its steps, at most
    `most`.

    models: (width, depth) -> a function that measures the seconds of one step, in the order of their cost. Measures
    until a model is too slow. More seconds never give a smaller model, nor fewer steps for the same model.
    """
    best: Plan | None = None
    for (width, depth), measure in models.items():
        affordable = int(seconds / measure())
        if best is not None and affordable < min(LEAST_STEPS, most):
            break
        best = Plan(width, depth, max(min(affordable, most), 1))
    assert best is not None
    return best


def prepare(cfg: DictConfig, folder: Path) -> None:
    """Fills the null values of the config of the run in `folder`, and fits its autoencoder if `fit_autoencoder` is set.

    The values come from the resumed run; else from budget.json of the same config, written by a process that stopped
    before its first checkpoint, or by rank 0 for the other ranks; else from measuring.

    Raises ValueError if the budget is not a positive number, or if values are null and no budget is given.
    """
    left = [key for key in OPEN if OmegaConf.select(cfg, key, default="absent") is None]
    fits = cfg.get("fit_autoencoder") is not None
    if not left and not fits:
        return
    if left and cfg.budget_minutes is None:
        raise ValueError(f"{left[0]}=null: give a value, or give budget_minutes to have one chosen")
    path = None if cfg.resume is None else checkpoint_to_resume(cfg.resume, folder)
    if path is not None:
        run = flat(read_checkpoint(path)[CONFIG])
        fill(cfg, {key: run.get(key) for key in left})
        if fits:
            own = path.absolute().parents[1] / "autoencoder"
            cfg.autoencoder.path = run[PATH] if Path(str(run.get(PATH))).is_dir() else str(own)
        return
    if cfg.trainer.max_steps is not None and not fits:
        fill(cfg, values_of_steps(cfg))
        return
    shaping = sorted((name, value) for name, value in plain(cfg).items() if name not in WITHOUT_EFFECT)
    key = hashlib.sha256(repr((shaping, code_digest("training/budget"))).encode()).hexdigest()
    values = recorded(folder, key)
    if values is None and not is_first():
        values = wait_for_record(folder, key)
    if values is None:
        values = decide(cfg)
        write_atomic(folder / FILE, json.dumps({"config": key, "values": values}, indent=2) + "\n")
    fill(cfg, values)
    if fits and is_first():
        keep_copy(Path(cfg.autoencoder.path), folder / "autoencoder")


def fill(cfg: DictConfig, values: Mapping[str, Any]) -> None:
    """Sets the values whose keys are null in the config, and the path of the autoencoder."""
    for key, value in values.items():
        if key == PATH or OmegaConf.select(cfg, key, default="absent") is None:
            OmegaConf.update(cfg, key, value)


def keep_copy(source: Path, target: Path) -> None:
    """Copies a folder unless the target exists. Raises ValueError if the source does not exist."""
    if target.exists():
        return
    if not source.is_dir():
        raise ValueError(f"{source}, the autoencoder fitted for this run, does not exist; choose another run_dir")
    growing = Path(tempfile.mkdtemp(dir=create_folder(target.parent), prefix=f".{target.name}.", suffix=".tmp"))
    try:
        shutil.copytree(source, growing / "copy")
        (growing / "copy").rename(target)
    finally:
        shutil.rmtree(growing, ignore_errors=True)


def values_of_steps(cfg: DictConfig) -> dict[str, Any]:
    """Returns the values for a given number of steps, without measuring."""
    return Plan(cfg.backbone.width or 128, cfg.backbone.depth or 4, int(cfg.trainer.max_steps)).values()


def recorded(folder: Path, key: str) -> dict[str, Any] | None:
    """Returns the values recorded in `folder` for this config, or None. Raises ValueError if the file is damaged."""
    if not (folder / FILE).is_file():
        return None
    try:
        found = json.loads(read_text(folder / FILE))
        return found["values"] if found["config"] == key else None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{folder / FILE} cannot be read; remove it to have the values chosen again") from None


def wait_for_record(folder: Path, key: str, most: float = 1800.0) -> dict[str, Any]:
    """Waits until rank 0 has recorded its values and returns them. Raises ValueError after `most` seconds."""
    end = time.monotonic() + most
    while (values := recorded(folder, key)) is None:
        if time.monotonic() > end:
            raise ValueError(f"rank 0 of {folder} has written no {FILE} in {most:.0f} seconds; look at its output")
        time.sleep(0.2)
    return values


def decide(cfg: DictConfig) -> dict[str, Any]:
    """Measures the speed of this machine, chooses the values and prints them in one line."""
    start, data = time.monotonic(), instantiate(cfg.data.module)
    fitted = {} if cfg.get("fit_autoencoder") is None else {PATH: fit_autoencoder(cfg, data)}
    if cfg.trainer.max_steps is not None:
        return fitted | values_of_steps(cfg)
    cfg, minutes = cfg.copy(), minutes_of(cfg)
    fill(cfg, fitted)
    pictures, most = len(data.train), math.ceil(MOST_VISITS * len(data.train) / cfg.batch_size)
    measured: dict[tuple[int, int], float] = {}

    def measure(model: tuple[int, int]) -> float:
        with torch.random.fork_rng():  # a run with the same values but without a budget gives equal results
            measured[model] = seconds_of_step(cfg, Plan(*model, 1), all_captions(data.train))
        return measured[model]

    reserved = 60 * minutes * cfg.fit_autoencoder.share if fitted else 0.0  # the same for a cached fit as for a new one
    left = 60 * minutes - max(time.monotonic() - start, reserved)
    found = planned(SHARE * left, most, {model: partial(measure, model) for model in models_of(cfg)})
    print(
        f"{minutes:g} minutes for {pictures:,} pictures of {cfg.data.size} pixels: {found.steps:,} steps of "
        f"{1000 * measured[found.width, found.depth]:.0f} ms, width {found.width}, depth {found.depth}",
        file=sys.stderr,
    )
    if cfg.data.size > PIXELS and cfg.autoencoder._target_ == "dit.encoders.autoencoder.Identity":
        print(f"above {PIXELS} pixels, latents give better pictures: experiment=folder_latents", file=sys.stderr)
    return fitted | found.values()


def minutes_of(cfg: DictConfig) -> float:
    """Returns the budget in minutes. Raises ValueError if it is not a positive number."""
    minutes = cfg.budget_minutes
    if isinstance(minutes, bool) or not isinstance(minutes, int | float) or not 0 < minutes < math.inf:
        raise ValueError(f"budget_minutes={minutes} must be a positive number; or give trainer.max_steps")
    return float(minutes)


def fit_autoencoder(cfg: DictConfig, data: PictureData) -> str:
    """Returns the folder of the run's autoencoder, which is fitted unless the cache has it."""
    given, hints = plain(cfg.fit_autoencoder), get_type_hints(Fit)
    for name, value in given.items():
        if name not in hints:
            raise ValueError(f"fit_autoencoder has no {name}; it has {', '.join(hints)}")
        check_value(value, hints[name], f"fit_autoencoder.{name}")
    fit = Fit(**given)
    seconds = 60 * minutes_of(cfg) * fit.share if fit.steps is None else None
    with torch.random.fork_rng():
        place = Path(cfg.cache_dir).absolute()
        return str(fitted_autoencoder(data.train, data.val, fit, seconds, cfg.seed, place, cfg.trainer.accelerator))


def models_of(cfg: DictConfig) -> list[tuple[int, int]]:
    """Returns width and depth of the models to choose from; a width or depth in the config replaces theirs."""
    sizes = ((cfg.backbone.width or width, cfg.backbone.depth or depth) for width, depth in MODELS)
    return list(dict.fromkeys(sizes))


def seconds_of_step(cfg: DictConfig, model: Plan, captions: list[str], count: int = 6) -> float:
    """Returns the median duration in seconds of `count` optimizer steps on this machine, on random latents."""
    cfg = cfg.copy()
    fill(cfg, model.values())
    close_vocabulary(cfg, captions, None)
    device = device_of({"gpu": "cuda"}.get(cfg.trainer.accelerator, cfg.trainer.accelerator))
    pipeline = build_pipeline(cfg)
    backbone = pipeline.backbone.to(device).train()
    objective = instantiate(cfg.objective, path=pipeline.path, prediction=pipeline.prediction)
    optimizer = instantiate(cfg.optimizer)(backbone.named_parameters())
    rows = torch.arange(cfg.batch_size)
    condition = pipeline.encode([captions[i % len(captions)] for i in rows.tolist()]).to(device)
    x, u = torch.randn(len(rows), *pipeline.latent_shape, device=device), (rows + 0.5).double() / len(rows)
    spent = []
    for _ in range(count + 2):
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled="bf16" in str(cfg.trainer.precision)):
            loss = objective(backbone, Draw(x, condition, torch.randn_like(x), u)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for the device
        spent.append(time.perf_counter() - start)
    return statistics.median(spent[2:])
