"""Reads metrics.csv of a run's directory."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from dit.files import read_text


def metric_rows(file: Path) -> dict[int, dict[str, float]]:
    """Returns the rows of metrics.csv by step, without empty values; none without the file. Raises ValueError for
    another content."""
    if not file.is_file():
        return {}
    try:
        lines = csv.DictReader(read_text(file).splitlines())
        return {
            int(line["step"]): {name: float(text) for name, text in line.items() if text and name != "step"}
            for line in lines
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is no table of metrics by step: {error}") from None


def newest(rows: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Returns the last value of every metric."""
    found: dict[str, float] = {}
    for step in sorted(rows):
        found |= rows[step]
    return found
