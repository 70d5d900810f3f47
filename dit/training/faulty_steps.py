"""The record of faulty steps: RUN/spikes, a file for each."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit.distributed import all_gather, rank_and_world_size
from dit.files import write_atomic
from dit.training.module import SampleLosses


@dataclass
class Step:
    """A step that is not judged yet. read: returns its values, which may wait for the device. fault: why it was
    skipped, or None."""

    number: int
    read: Callable[[], list[float]]
    samples: list[SampleLosses]
    fault: str | None


def record(folder: Path, step: Step, values: dict[str, float], fault: str, action: str) -> None:
    """Writes RUN/spikes/step_NUMBER.json: the fault, the values, and the samples of all ranks with their times and
    losses. Numbers that are not finite are null. Every process must call it."""

    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    rank = rank_and_world_size()[0]
    rows = []
    for part in step.samples:
        columns: dict[str, list[Any]] = {"sample": part.index.tolist(), "epoch": part.epoch.tolist()}
        columns |= {"time": part.times.tolist()} if part.times is not None else {}
        columns |= {"loss": [number(loss) for loss in part.losses.tolist()]} if part.losses is not None else {}
        rows += [{"rank": rank} | dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    every = [row for own in all_gather(rows) for row in own]
    if rank == 0:
        found = {"step": step.number, "fault": fault, "action": action}
        found |= {name.replace(" ", "_"): number(value) for name, value in values.items()}
        (folder / "spikes").mkdir(exist_ok=True)
        text = json.dumps(found | {"samples": every}, indent=1)
        write_atomic(folder / "spikes" / f"step_{step.number:07d}.json", text + "\n")
