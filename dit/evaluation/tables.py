"""Tables of results: as CSV, and as values for the report, with intervals and the best cells marked."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dit.evaluation.results import Best, interval
from dit.evaluation.sampling_cost import THOUSAND, unit_of
from dit.evaluation.statistics import decimals, text_with_interval
from dit.evaluation.sweep import Row
from dit.plain_values import flat

HEADERS = {
    "nfe": "NFE",
    "effective_nfe": "effective NFE",
    "blocks_saved": "blocks saved",
}


@dataclass(frozen=True)
class Column:
    """label: True if it identifies a row and is not a score. digits: number of decimals, if its values have
    intervals."""

    name: str
    label: bool = False
    digits: int | None = None

    @property
    def title(self) -> str:
        if self.name.endswith(THOUSAND):
            return f"{unit_of(self.name)} / 1000 pictures"
        return HEADERS.get(self.name, self.name.replace("_", " "))


def plain_row(row: Row) -> Row:
    """Returns a row without nested values: each interval as NAME_low and NAME_high."""
    ends = {
        f"{name}_{end}": value
        for name, found in row.get("intervals", {}).items()
        for end, value in zip(("low", "high"), found, strict=True)
    }
    return {name: value for name, value in row.items() if name != "intervals"} | ends


def table_csv(rows: Sequence[Row]) -> str:
    flattened = [plain_row(row) for row in rows]
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in flattened for name in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flattened)
    return text.getvalue()


def columns_of(rows: Sequence[Row], labels: Sequence[str], scores: Sequence[str]) -> list[Column]:
    """Returns the columns of a table. The number of decimals of a score follows from the median interval: two uncertain
    digits."""
    found = [Column(name, label=True) for name in labels]
    for name in scores:
        ends = [e for row in rows if (e := interval(row, name)) and e[1] > e[0]]
        digits = decimals(statistics.median((high - low) / 2 for low, high in ends)) if ends else None
        found.append(Column(name, digits=None if digits is None or digits > 6 else digits))
    return found


def number(value: Any, digits: int | None = None) -> str:
    """Returns the text of a value in a table."""
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:.{digits}f}" if digits is not None and math.isfinite(value) else f"{value:.4g}"


def with_interval(row: Row, name: str) -> str:
    """Returns a score of a row with its interval, e.g. "0.97 [0.95, 0.98]"."""
    return text_with_interval(float(row[name]), interval(row, name))


def cost_columns(rows: Sequence[Row]) -> list[str]:
    """Returns the columns of cost that any row has."""
    thousand = dict.fromkeys(name for row in rows for name in row if name.endswith(THOUSAND))
    return [n for n in ("nfe", "effective_nfe", "blocks_saved", *thousand) if any(row.get(n) for row in rows)]


def cell(row: Mapping[str, Any], column: Column, mark: str = "") -> dict[str, Any]:
    """Returns a value for the report: its text; its sort key; the ends of its interval and the distances to them, below
    and above (sides), as texts; and its mark."""
    value, ends = row.get(column.name), interval(row, column.name)
    sides = () if ends is None or value is None else (value - ends[0], ends[1] - value)
    return {
        "text": number(value, column.digits),
        "sort": "" if value is None else repr(float(value)) if isinstance(value, (int, float)) else str(value),
        "ends": [number(end) for end in ends or ()],
        "sides": [number(side, column.digits) for side in sides],
        "mark": mark,
    }


def table(
    rows: Sequence[Row], columns: Sequence[Column], bests: Sequence[Best] = (), floors: Sequence[Row] = ()
) -> dict[str, Any]:
    """Returns a table for the report: columns, rows of cells, and a row for each floor that has any of these scores. In
    the column of each of `bests` the best cell is marked ★, and cells that are not significantly different ≈."""
    marks: dict[tuple[str, int], str] = {}  # by id(row), because different rows can be equal
    for best in bests:
        marks |= {(best.score.name, id(row)): "≈" for row in best.tied or ()}
        marks[best.score.name, id(best.row)] = "★"
    scores = [column for column in columns if not column.label]
    labels = len(columns) - len(scores)
    known = [row for row in floors if any(column.name in row for column in scores)] if labels else []
    return {
        "columns": columns,
        "labels": labels,
        "rows": [[cell(row, column, marks.get((column.name, id(row)), "")) for column in columns] for row in rows],
        "floors": [{"name": row["pictures"], "cells": [cell(row, column) for column in scores]} for row in known],
    }


def leaves(fields: Mapping[str, Any]) -> dict[str, str]:
    """Returns nested fields as texts by dotted names."""
    return {
        name: ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else number(value)
        for name, value in flat(fields).items()
        if value != {}
    }
