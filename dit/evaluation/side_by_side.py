"""The comparison of results as plain text, and as a table for other programs."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence

from dit.evaluation.card import Card
from dit.evaluation.comparison import (
    Difference,
    FieldDifferences,
    Result,
    affects,
    can_be_paired,
    columns_of_several_counts,
    headlines_of,
    protocol_differences,
    score_differences,
    short_text,
)
from dit.evaluation.statistics import text_with_interval


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns the columns under each other, the first aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    pattern = "  ".join(f"{{:{'>' if i else '<'}{width}}}" for i, width in enumerate(widths))
    return "\n".join(pattern.format(*row).rstrip() for row in (head, *rows))


def fields_text(fields: FieldDifferences) -> str:
    return ", ".join(f"{field} ({short_text(b)}, not {short_text(a)})" for field, (a, b) in fields.items())


def refusal(names: Sequence[str], differing: Sequence[FieldDifferences]) -> str:
    """Returns the error message for protocols that differ from the first, equal differences once.

    names: of all results; differing: of all but the first."""
    groups: dict[str, list[str]] = {}
    for name, fields in zip(names[1:], differing, strict=True):
        if fields:
            groups.setdefault(fields_text(fields), []).append(name)
    return "; ".join(
        f"{some[0]}{f' and {len(some) - 1} more' * (len(some) > 1)} not scored in the same way as {names[0]}: {fields}"
        for fields, some in groups.items()
    )


def version_differences(results: Sequence[Result]) -> str:
    """Returns the software whose versions differ, in one line; "" if none do."""
    fields = sorted({field for result in results for field in result.card.versions})
    found = {field: sorted({str(result.card.versions.get(field)) for result in results}) for field in fields}
    return ", ".join(f"{field} {' and '.join(values)}" for field, values in found.items() if len(values) > 1)


def verdict_text(difference: Difference) -> str:
    """Returns the verdict; of results that are equal or worse also within which bound they are: a small loss can be
    significant and still acceptable."""
    if difference.verdict not in ("no difference", "worse") or difference.within is None:
        return difference.verdict
    scale = 10.0 ** (1 - math.floor(math.log10(difference.within or 1)))
    return f"{difference.verdict}, within {math.ceil(difference.within * scale) / scale:g}"  # rounded up: it is a bound


class Comparison:
    """Results with their differences to the first, the baseline. floors: scores of real pictures, which are shown below
    and not compared. differing: for each result the protocol fields that differ from the baseline."""

    def __init__(
        self, results: Sequence[Result], names: Sequence[str], columns: Sequence[str], floors: Sequence[Result] = ()
    ) -> None:
        self.results, self.names, self.columns, self.floors = results, names, columns, floors
        self.better = headlines_of(results)
        first, *others = results
        self.differing = [protocol_differences(first.card, result.card) for result in results]
        self.paired = [can_be_paired(first.card, result.card) for result in results]
        self.differences: list[Mapping[str, Difference]] = [
            {},
            *score_differences(first, others, columns, self.better),
        ]
        kinds = list(dict.fromkeys(str(fields) for fields in self.differing if fields))
        self.marks = [" " + "*" * (kinds.index(str(fields)) + 1) if fields else "" for fields in self.differing]

    def mark(self, row: int, column: str) -> str:
        card = self.results[row].card
        return self.marks[row] if any(affects(field, column, card) for field in self.differing[row]) else ""

    def scores(self) -> str:
        """Returns a table of all scores. Each interval holds with 95 % by itself."""
        rows = [
            self.score_row(name, result.card, row)
            for row, (name, result) in enumerate(zip(self.names, self.results, strict=True))
        ]
        rows += [self.score_row(f"({floor.card.subject.get('images')} pictures)", floor.card) for floor in self.floors]
        good = {True: " (higher is better)", False: " (lower is better)", None: ""}
        return table(["", "N", "NFE", "seconds", *(c + good[self.better.get(c)] for c in self.columns)], rows)

    def score_row(self, name: str, card: Card, row: int | None = None) -> list[str]:
        cost = [f"{card.cost[key]:.3g}" if key in card.cost else "-" for key in ("nfe", "seconds")]
        scores = []
        for column in self.columns:
            mark = "" if row is None else self.mark(row, column)
            known = column in card.scores
            scores.append(text_with_interval(card.scores[column], card.intervals.get(column)) + mark if known else "-")
        return [name, str(card.protocol.get("n", "-")), *cost, *scores]

    def verdicts(self) -> str:
        """Returns a table of the differences to the first result."""
        rows = []
        for row, found in list(enumerate(self.differences))[1:]:
            texts = {
                column: f"{text_with_interval(d.value, d.interval, '+')} {verdict_text(d)}{self.mark(row, column)}"
                for column, d in found.items()
            }
            name = self.names[row] + ("" if self.paired[row] else " (unpaired)")
            rows.append([name, *(texts.get(column, "-") for column in self.columns)])
        return table([f"minus {self.names[0]}", *self.columns], rows)

    def notes(self) -> list[str]:
        count = sum(difference.interval is not None for found in self.differences for difference in found.values())
        lines = []
        if count:
            lines.append(f"All {count} intervals of differences together hold with 95 % (Bonferroni).")
            lines.append("within X: with the same confidence the difference is not larger than X in either direction.")
        if not all(self.paired):
            lines.append("unpaired: other prompts or noise (seed), so only larger differences are significant.")
        for mark, fields in dict(zip(self.marks, self.differing, strict=True)).items():
            if fields:
                lines.append(f"{mark.strip()} not scored in the same way as the first: {fields_text(fields)}")
        for columns in columns_of_several_counts([c for c in self.columns if c in self.better]):
            lines.append(f"{' and '.join(columns)} are not compared, because their N differ")
        versions = version_differences(self.results)
        return [*lines, f"Software versions differ: {versions}"] if versions else lines

    def csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        bounds = ["low", "high", "difference", "difference_low", "difference_high"]
        writer.writerow(["result", "file", "column", "score", *bounds, "verdict", "within", "paired", "unlike"])
        for row, result in enumerate(self.results):
            for column in (c for c in self.columns if c in result.card.scores):
                interval = result.card.intervals.get(column, ("", ""))
                cells = [self.names[row], result.file, column, result.card.scores[column], *interval]
                difference = self.differences[row].get(column)
                if difference is None:
                    cells += [""] * 6
                else:
                    cells += [difference.value, *(difference.interval or ("", "")), difference.verdict]
                    cells.append("" if difference.within is None else difference.within)
                    cells.append(self.paired[row])
                writer.writerow([*cells, "; ".join(self.differing[row])])
        return text.getvalue()
