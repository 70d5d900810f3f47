"""Tables of cells: as text for a spreadsheet, and cell by cell for the report, with intervals and the best marked."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dit.evaluation.results import Best, interval
from dit.evaluation.statistics import digits_worth
from dit.evaluation.sweep import Row
from dit.plain_values import flat

HEADERS = {"nfe": "NFE", "seconds": "s / picture", "images_per_second": "pictures / s"}


@dataclass(frozen=True)
class Column:
    """label: it says what a row is, and holds no score. digits: after the point, if its values have intervals."""

    name: str
    label: bool = False
    digits: int | None = None

    @property
    def title(self) -> str:
        return HEADERS.get(self.name, self.name.replace("_", " "))


def plain_row(row: Row) -> Row:
    """A row without what is nested: each interval as NAME_low and NAME_high."""
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
    """The columns of a table, each score with as many digits as the intervals of most rows justify: two uncertain
    ones."""
    found = [Column(name, label=True) for name in labels]
    for name in scores:
        ends = [e for row in rows if (e := interval(row, name)) and e[1] > e[0]]
        reach = statistics.median((high - low) / 2 for low, high in ends) if ends else 0
        digits = digits_worth(reach) if reach else None
        found.append(Column(name, digits=None if digits is None or digits > 6 else digits))
    return found


def number(value: Any, digits: int | None = None) -> str:
    """Plain text of a value in a table."""
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:.{digits}f}" if digits is not None and math.isfinite(value) else f"{value:.4g}"


def with_interval(row: Row, name: str) -> str:
    """0.97 [0.95, 0.98] as plain text."""
    (column,) = columns_of([row], [], [name])
    ends = interval(row, name)
    text = number(float(row[name]), column.digits)
    return f"{text} [{number(ends[0], column.digits)}, {number(ends[1], column.digits)}]" if ends else text


def cost_columns(rows: Sequence[Row]) -> list[str]:
    """The columns of cost that any row has."""
    return [name for name in ("nfe", "seconds") if any(row.get(name) for row in rows)]


def cell(row: Mapping[str, Any], column: Column, mark: str = "") -> dict[str, Any]:
    """A value as the report shows it: text; sort, what it is sorted by; ends, the interval, with how far it goes below
    and above, as text; mark: ★ for the best, ≈ for one that is not significantly different."""
    value, ends = row.get(column.name), interval(row, column.name)
    sort = "" if value is None else repr(float(value)) if isinstance(value, (int, float)) else str(value)
    found: dict[str, Any] = {
        "text": number(value, column.digits),
        "sort": sort,
        "mark": mark,
        "ends": None,
        "below": "",
        "above": "",
    }
    if ends is not None and value is not None:
        reach = (number(side, column.digits) for side in (value - ends[0], ends[1] - value))
        found |= {"ends": [number(end) for end in ends]} | dict(zip(("below", "above"), reach, strict=True))
    return found


def table(
    rows: Sequence[Row], columns: Sequence[Column], bests: Sequence[Best] = (), floors: Sequence[Row] = ()
) -> dict[str, Any]:
    """A table for the report: its rows of cells; in each best's column the best one is marked, and those that are not
    significantly different from it; below, a row for each kind of real pictures that has any of these scores."""
    marks: dict[tuple[str, int], str] = {}  # rows are identified by their place in memory: others may be equal
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
    """Nested fields as texts under dotted names."""
    return {
        name: ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else number(value)
        for name, value in flat(fields).items()
        if value != {}
    }
