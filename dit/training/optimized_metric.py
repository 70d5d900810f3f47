"""The number that a run returns to Hydra, so that a sweeper can search for the settings with the best one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
from hydra.core.hydra_config import HydraConfig

from dit.checkpoints.metrics_csv import metric_rows, newest
from dit.errors import nearest
from dit.files import read_json
from dit.training import run_directory
from dit.training.progress import Throughput
from dit.training.reconstructions import Reconstructions
from dit.training.scores import ClosingScore, PeriodicScore

KNOWN = (Throughput, ClosingScore, Reconstructions)  # callbacks that add numbers to the summary
GRID = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"  # tries all values, and reads no result


def unknown(name: str, known: Iterable[str]) -> ValueError:
    return ValueError(f"optimized_metric={name}: a run has no such metric.{nearest(name, known)}")


def check_sweeper(name: str | None) -> None:
    """Raises ValueError if the sweeper searches by a number and no metric is chosen."""
    sweeper = HydraConfig.get().sweeper._target_ if run_directory.in_sweep() else GRID
    if name is None and sweeper != GRID:
        raise ValueError(
            f"{sweeper.rpartition('.')[2]} searches by a number: say which with optimized_metric=NAME, such as "
            f"val/loss or prompt_accuracy"
        )


class MetricCheck(L.Callback):
    """Raises ValueError for an `optimized_metric` that the run will not have: before training if that is known, after
    the first validation for what validation logs, else at the end (`value_of`)."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        summing = [c for c in callbacks if hasattr(c, "summary")]
        if not all(isinstance(c, KNOWN) for c in summing):
            return  # the numbers of another callback are known when it returns them
        known = {"steps", "parameters", "train/loss", *getattr(pl_module, "headlines", ())}
        known |= {name for c in callbacks if hasattr(c, "headlines") for name in c.headlines()}
        known |= {name for c in summing for name in c.summary()}
        scored = any(isinstance(c, PeriodicScore) for c in callbacks)
        later = ("train/", "val/", "accuracy_", *(["score/"] if scored else []))  # known when they appear
        if self.name not in known and not self.name.startswith(later):
            raise unknown(self.name, known)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        known = trainer.callback_metrics
        if self.name.startswith("val/") and self.name not in known:
            raise unknown(self.name, known)


def value_of(folder: Path, name: str) -> float:
    """Returns a metric of a run from its summary.json, or the last one in metrics.csv if trainer.max_time has ended it;
    NaN if it is not finite. Raises ValueError if the run has no such metric."""
    if run_directory.is_finished(folder):
        summary = read_json(folder / "summary.json")
        found: dict[str, Any] = {key: v for key, v in summary.items() if v is None or isinstance(v, int | float)}
    else:
        found = newest(metric_rows(folder / "metrics.csv"))
    if name not in found:
        raise unknown(name, found)
    return math.nan if found[name] is None else float(found[name])
