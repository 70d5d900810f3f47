"""The numbers of a finished run, and summary.json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import lightning as L

from dit.files import write_atomic
from dit.training import run_directory
from dit.training.loggers import MetricsCsv
from dit.training.module import TrainedModule


@dataclass(frozen=True)
class Summary:
    """The numbers of a finished run by name, and for the main ones whether higher is better."""

    numbers: Mapping[str, float]
    headlines: Mapping[str, bool]


def summarize(trainer: L.Trainer, module: L.LightningModule, csv: MetricsCsv) -> Summary:
    """Returns steps, parameters, the last value of every metric, and the summaries of callbacks.

    If a run was killed after its last step and is resumed, the values come from metrics.csv.
    """
    last = csv.last() | {k: float(v) for k, v in trainer.callback_metrics.items()}
    for name in ("images_per_second", "data_seconds_per_step"):  # those of the whole run are in the summary
        last.pop(f"train/{name}", None)
    numbers: dict[str, float] = {
        "steps": trainer.global_step,
        "parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
    }
    headlines = dict(module.headlines) if isinstance(module, TrainedModule) else {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if hasattr(callback, "summary"):
            numbers |= callback.summary()
        if hasattr(callback, "headlines"):
            headlines |= callback.headlines()
    numbers |= last
    return Summary(numbers, {name: up for name, up in headlines.items() if name in numbers})


def finish(folder: Path, summary: Summary | None) -> None:
    """Writes summary.json, with the overrides of the run and with null for numbers that are not finite, and prints the
    numbers."""
    if summary is None:
        return
    numbers = {name: value if math.isfinite(value) else None for name, value in summary.numbers.items()}
    found = {"overrides": run_directory.overrides_of(folder), "higher_is_better": summary.headlines, **numbers}
    write_atomic(folder / "summary.json", json.dumps(found, indent=2, allow_nan=False) + "\n")
    print(", ".join(f"{name} {value:.4g}" for name, value in summary.numbers.items()), flush=True)
