"""Runs as their directories describe them, finished or not: where they came from, their state, metrics and curves."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from dit.checkpoints.metrics_csv import metric_rows, newest
from dit.checkpoints.native import read_run_config
from dit.evaluation.run_settings import Origin
from dit.files import ELSEWHERE, ERROR, LOCK, is_locked, read_json, read_text

State = Literal["finished", "running", "failed", "interrupted"]
# Of runs of earlier versions, whose summary does not say whether higher is better.
EARLIER = {"val/loss": False, "prompt_accuracy": True, "prompt_accuracy_unseen": True}


@dataclass(frozen=True)
class RunRecord:
    """A run's directory. summary: the content of summary.json; empty until the run is finished. reason: why it
    failed. rows: those of metrics.csv, by step."""

    path: Path
    origin: Origin
    state: State
    summary: Mapping[str, Any]
    reason: str
    rows: Mapping[int, Mapping[str, float]]

    @classmethod
    def read(cls, path: Path) -> RunRecord:
        """Raises ValueError if config.yaml, summary.json or metrics.csv cannot be read."""
        origin = Origin.of(path, read_run_config(path / "config.yaml"))
        file, error = path / "summary.json", path / ERROR
        summary = read_json(file, nan=True) if file.is_file() else {}
        state: State = "interrupted"
        if summary:
            state = "finished"
        elif is_locked(path / LOCK):
            state = "running"
        elif error.is_file():
            state = "failed"
        reason = read_text(error).strip() if state == "failed" else ""
        return cls(path, origin, state, summary, reason, metric_rows(path / "metrics.csv"))

    @property
    def step(self) -> int:
        """The number of steps done."""
        return int(self.summary.get("steps") or max(self.rows, default=0))

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The final metrics, NaN where they are not finite; the newest ones of a run that is not finished."""
        if self.state == "finished":
            found = {name: math.nan if value is None else value for name, value in self.summary.items()}
            return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}
        return newest(self.rows)

    @property
    def headlines(self) -> dict[str, bool]:
        """The main metrics, and whether higher is better."""
        known = self.summary.get("higher_is_better", EARLIER)
        return {name: up for name, up in known.items() if name in self.metrics}

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Returns the steps at which a metric was logged, and its values."""
        steps = [step for step in sorted(self.rows) if math.isfinite(self.rows[step].get(name, math.nan))]
        return steps, [self.rows[step][name] for step in steps]


def run_folders(folder: Path) -> Iterator[Path]:
    """Yields the run directories below a folder, or the folder itself, each once; also those of other sweeps that jobs
    of this sweep have continued."""
    seen: set[Path] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        path = Path(place)
        folders[:] = sorted((name for name in folders if name[0] not in "._" and name != "wandb"), key=in_order)
        is_run = "config.yaml" in files and "environment.json" in files
        continued = [Path(read_text(path / name).strip()) for name in sorted(files) if name.endswith(ELSEWHERE)]
        for run in [path] if is_run else [run for run in continued if (run / "config.yaml").is_file()]:
            if run.resolve() not in seen:
                seen.add(run.resolve())
                yield run
        if is_run or path.resolve() in seen:
            folders.clear()


def in_order(name: str) -> tuple[str, str]:
    """Returns a key that sorts 2 before 10."""
    return re.sub(r"\d+", lambda digits: digits[0].zfill(9), name), name


def read_runs(folder: Path) -> list[RunRecord]:
    """Returns the runs below a folder, without those that cannot be read, of which it warns. Raises ValueError if there
    are none."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; name a folder of runs, such as runs/shapes")
    found = []
    for path in run_folders(folder):
        try:
            found.append(RunRecord.read(path))
        except ValueError as error:
            print(f"warning: {path} is left out: {error}", file=sys.stderr)
    if not found:
        raise ValueError(f"{folder} holds no runs (folders with config.yaml and environment.json); name one that does")
    return found
