"""Tables of cells: as text for a spreadsheet, and as HTML with intervals, floors and the best marked."""

from __future__ import annotations

import csv
import html
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
    """told: it says what a row is, and holds no score. digits: after the point, where its values have intervals."""

    name: str
    told: bool = False
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


def columns_of(rows: Sequence[Row], told: Sequence[str], scores: Sequence[str]) -> list[Column]:
    """Of a table, each score with as many digits as the intervals of most rows are worth: two that are not sure."""
    found = [Column(name, told=True) for name in told]
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


def reach_html(row: Mapping[str, Any], column: Column) -> str:
    """How far a score's interval goes, small: to both sides, or above and below where they differ."""
    ends = interval(row, column.name)
    if ends is None:
        return ""
    value = float(row[column.name])
    below, above = (number(side, column.digits) for side in (value - ends[0], ends[1] - value))
    if below == above:
        return f" <small>±{above}</small>"
    return f" <small class=ends><span>+{above}</span><span>&minus;{below}</span></small>"


def cell_html(row: Mapping[str, Any], column: Column, mark: str = "") -> str:
    value = row.get(column.name)
    sort = html.escape("" if value is None else repr(float(value)) if isinstance(value, (int, float)) else str(value))
    text = html.escape(number(value, column.digits)) or "&ndash;"
    kind = {"★": " class=best", "≈": " class=alike"}.get(mark, "")
    ends = interval(row, column.name)
    tip = f' title="95 %: {number(ends[0])} to {number(ends[1])}"' if ends else ""
    flag = f"<b>{mark}</b> " if mark else ""
    return f'<td{kind}{tip} data-v="{sort}">{flag}{text}{reach_html(row, column)}</td>'


def table_html(
    rows: Sequence[Row], columns: Sequence[Column], bests: Sequence[Best] = (), floors: Sequence[Row] = ()
) -> str:
    """The rows, sortable by a click on a header; in each best's column the best one and those that cannot be told from
    it marked; the floors below, apart."""
    marks: dict[tuple[str, int], str] = {}  # a row is known by which it is: others may be equal
    for best in bests:
        marks |= {(best.score.name, id(row)): "≈" for row in best.alike or ()}
        marks[best.score.name, id(best.row)] = "★"
    head = "".join(f"<th scope=col{' class=told' if c.told else ''}>{html.escape(c.title)}</th>" for c in columns)
    body = "".join(
        "<tr>" + "".join(cell_html(row, c, marks.get((c.name, id(row)), "")) for c in columns) + "</tr>" for row in rows
    )
    return (
        f"<div class=scroll><table class=sort><thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
        f"{floors_html(floors, columns)}</table></div>"
    )


def floors_html(floors: Sequence[Row], columns: Sequence[Column]) -> str:
    """A row for each kind of real pictures that has any of these scores."""
    told = sum(column.told for column in columns)
    some = [row for row in floors if any(c.name in row for c in columns if not c.told)]
    lines = "".join(
        f"<tr><th scope=row>{html.escape(row['pictures'])}</th>{'<td></td>' * (told - 1)}"
        + "".join(cell_html(row, column) for column in columns if not column.told)
        + "</tr>"
        for row in some
    )
    return f"<tfoot>{lines}</tfoot>" if lines and told else ""


def pairs_html(pairs: Mapping[str, Any]) -> str:
    """Names and values below each other."""
    lines = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(number(value))}</dd>" for name, value in leaves(pairs).items()
    )
    return f"<dl>{lines}</dl>"


def leaves(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Nested fields under dotted names, lists as they are read."""
    return {
        name: ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        for name, value in flat(fields).items()
        if value != {}
    }
