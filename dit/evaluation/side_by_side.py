"""Results side by side as plain text and as a table for other programs."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence

from dit.evaluation.card import Card
from dit.evaluation.comparison import (
    Difference,
    Result,
    Unlike,
    brief,
    compared,
    headlines_of,
    other_counts,
    pairs,
    touches,
    unlike,
)
from dit.evaluation.statistics import digits_worth


def number(value: float, interval: Sequence[float] | None = None, sign: str = "") -> str:
    """A value with its interval, to two digits of the interval's width."""
    if interval is None or not all(map(math.isfinite, interval)) or interval[0] >= interval[1]:
        told = f"{value + 0.0:{sign}.4g}"
        return told if interval is None else f"{told} [{interval[0] + 0.0:{sign}.4g}, {interval[1] + 0.0:{sign}.4g}]"
    digits = digits_worth((interval[1] - interval[0]) / 2)
    told, low, high = (f"{round(v, digits) + 0.0:{sign}.{digits}f}" for v in (value, *interval))
    return f"{told} [{low}, {high}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under each other, the first to the left, all others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [[c.ljust(w) if not i else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
             for row in (head, *rows)]  # fmt: skip
    return "\n".join("  ".join(line).rstrip() for line in lines)


def refusal(names: Sequence[str], found: Sequence[Unlike]) -> str:
    """Every field in which results differ from the first, with both values; those that differ alike told once."""
    faults: dict[str, list[str]] = {}
    for name, fields in zip(names[1:], found, strict=True):
        if fields:
            told = ", ".join(f"{field} ({brief(b)}, not {brief(a)})" for field, (a, b) in fields.items())
            faults.setdefault(told, []).append(name)
    who = {told: alike[0] + f" and {len(alike) - 1} more" * (len(alike) > 1) for told, alike in faults.items()}
    return "; ".join(f"{name} not scored as {names[0]}: {told}" for told, name in who.items())


def versions(results: Sequence[Result]) -> str:
    """The software that was not the same, in a line."""
    fields = sorted({field for result in results for field in result.card.versions})
    held = {field: sorted({str(result.card.versions.get(field)) for result in results}) for field in fields}
    return ", ".join(f"{field} {' and '.join(values)}" for field, values in held.items() if len(values) > 1)


class Comparison:
    """All that is told of results, of which the first is the baseline. floors: shown beneath, compared with nothing.
    better: the columns of which it is known whether higher is better."""

    def __init__(
        self, results: Sequence[Result], names: Sequence[str], columns: Sequence[str], floors: Sequence[Result] = ()
    ) -> None:
        self.floors = floors
        self.results, self.names, self.columns = results, names, columns
        self.better = headlines_of(results)
        first, *others = results
        self.unlike = [unlike(first.card, result.card) for result in results]
        self.paired = [pairs(first.card, result.card) for result in results]
        self.differences: list[Mapping[str, Difference]] = [{}, *compared(first, others, columns, self.better)]
        kinds = list(dict.fromkeys(str(fields) for fields in self.unlike if fields))
        self.marks = [" " + "*" * (kinds.index(str(fields)) + 1) if fields else "" for fields in self.unlike]

    def mark(self, place: int, column: str) -> str:
        card = self.results[place].card
        return self.marks[place] if any(touches(field, column, card) for field in self.unlike[place]) else ""

    def scores(self) -> str:
        """A table of all scores, with intervals that each hold with 95 %."""
        rows = [
            self.row(name, result.card, place)
            for place, (name, result) in enumerate(zip(self.names, self.results, strict=True))
        ]
        rows += [self.row(f"({floor.card.subject.get('images')} pictures)", floor.card) for floor in self.floors]
        good = {True: " (higher is better)", False: " (lower is better)", None: ""}
        return table(["", "N", "NFE", "seconds", *(c + good[self.better.get(c)] for c in self.columns)], rows)

    def row(self, name: str, card: Card, place: int | None = None) -> list[str]:
        cost = [f"{card.cost[key]:.3g}" if key in card.cost else "-" for key in ("nfe", "seconds")]
        scores = []
        for column in self.columns:
            mark = "" if place is None else self.mark(place, column)
            known = column in card.scores
            scores.append(number(card.scores[column], card.intervals.get(column)) + mark if known else "-")
        return [name, str(card.protocol.get("n", "-")), *cost, *scores]

    def verdicts(self) -> str:
        """A table of the differences to the first."""
        rows = []
        for place, found in list(enumerate(self.differences))[1:]:
            told = {c: f"{number(d.value, d.interval, '+')} {d.verdict}{self.mark(place, c)}" for c, d in found.items()}
            name = self.names[place] + ("" if self.paired[place] else " (unpaired)")
            rows.append([name, *(told.get(column, "-") for column in self.columns)])
        return table([f"less {self.names[0]}", *self.columns], rows)

    def notes(self) -> list[str]:
        count = sum(difference.interval is not None for found in self.differences for difference in found.values())
        lines = []
        if count:
            lines.append(f"The {count} intervals of differences hold all together with 95 % (Bonferroni).")
        if not all(self.paired):
            lines.append("unpaired: of other prompts or noise (seed), so that only a larger difference can be told.")
        for mark, fields in dict(zip(self.marks, self.unlike, strict=True)).items():
            told = ", ".join(f"{field} ({brief(b)}, not {brief(a)})" for field, (a, b) in fields.items())
            lines += [f"{mark.strip()} not scored as the first: {told}"] if fields else []
        lines += [f"{' and '.join(alike)} are not compared: a score of other N is another" for alike in
                  other_counts([c for c in self.columns if c in self.better])]  # fmt: skip
        differing = versions(self.results)
        return [*lines, f"Software versions differ: {differing}"] if differing else lines

    def csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        bounds = ["low", "high", "difference", "difference_low", "difference_high"]
        writer.writerow(["result", "file", "column", "score", *bounds, "verdict", "paired", "unlike"])
        for place, result in enumerate(self.results):
            for column in (c for c in self.columns if c in result.card.scores):
                interval = result.card.intervals.get(column, ("", ""))
                row = [self.names[place], result.file, column, result.card.scores[column], *interval]
                difference = self.differences[place].get(column)
                if difference is None:
                    row += [""] * 5
                else:
                    row += [difference.value, *(difference.interval or ("", "")), difference.verdict]
                    row.append(self.paired[place])
                writer.writerow([*row, "; ".join(self.unlike[place])])
        return text.getvalue()
