"""What a report tells: the cells as rows, how a reader calls them, and which of them is best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dit.evaluation.card import Card
from dit.evaluation.statistics import winner
from dit.evaluation.sweep import Row, name_of, row_of

COST = ("nfe", "seconds", "images_per_second", "total_seconds")
SERIES = ("sampler", "model", "checkpoint", "weights", "images", "grid")  # sampled alike


@dataclass(frozen=True)
class Score:
    """A column of a sweep that is worth a plot, and which of its values are good. share: of pictures, in [0, 1]."""

    name: str
    higher_is_better: bool
    share: bool = False

    @property
    def title(self) -> str:
        return f"{self.name} ({'higher' if self.higher_is_better else 'lower'} is better)"

    def loss(self, row: Row) -> float:
        """The less, the better."""
        return -row[self.name] if self.higher_is_better else row[self.name]

    def known(self, row: Mapping[str, Any]) -> bool:
        return isinstance(row.get(self.name), (int, float)) and math.isfinite(row[self.name])


@dataclass(frozen=True)
class Best:
    """The row with the best score; `tied`, those that are not significantly different from it, the cheapest first, or
    None if the score has no parts of single pictures; and how many others it was chosen from."""

    score: Score
    row: Row
    tied: Sequence[Row] | None
    others: int


@dataclass(frozen=True)
class Results:
    """All that a report shows. cards: one for each cell; parts: for each card what `Card.write` keeps beside it;
    strips: for each card its first pictures, (S, 3, H, W) uint8, by the first S prompts. headlines: the columns worth a
    plot, and whether higher is better, the first by which the winner is chosen. floors: cards of real pictures. models:
    of the models themselves, each with its name (model), its scores and all that they depend on (made_with). again: the
    winner on fresh noise. notes: what a reader should bear in mind with these scores."""

    title: str
    cards: Sequence[Card]
    parts: Sequence[Mapping[str, Tensor]]
    strips: Sequence[Tensor]
    prompts: Sequence[str]
    headlines: Mapping[str, bool]
    floors: Mapping[str, Card] = field(default_factory=dict)
    models: Sequence[Mapping[str, Any]] = ()
    again: Card | None = None
    notes: Sequence[str] = ()

    @cached_property
    def rows(self) -> list[Row]:
        return [row_of(card) for card in self.cards]

    @cached_property
    def model_rows(self) -> list[Row]:
        """The models' scores as rows."""
        return [{"model": model["model"], **model["scores"]} for model in self.models]

    @property
    def table(self) -> list[Row]:
        """The rows of results.csv: the cells, or the models where nothing was sampled."""
        return self.rows or self.model_rows

    @cached_property
    def named(self) -> list[Row]:
        """The rows, their checkpoints called as briefly as tells them apart."""
        rows = self.rows
        brief = shortened(str(row["checkpoint"]) for row in rows if "checkpoint" in row)
        return [row | {"checkpoint": brief[row["checkpoint"]]} if "checkpoint" in row else row for row in rows]

    @cached_property
    def scored(self) -> list[Row]:
        """The named rows that have scores."""
        return [row for row in self.named if row["failed"] is None]

    @cached_property
    def scores(self) -> list[Score]:
        """The headlines that some cell has."""
        shares = {name for parts in self.parts for name, part in parts.items() if part.dtype == torch.bool}
        found = [Score(name, up, name in shares or "accuracy" in name) for name, up in self.headlines.items()]
        return [score for score in found if any(score.known(row) for row in self.scored)]

    @cached_property
    def columns(self) -> list[str]:
        """Of all scores, the headlines first."""
        names = dict.fromkeys(name for card in self.cards if card.failed is None for name in card.scores)
        return [*(n for n in self.headlines if n in names), *(n for n in names if n not in self.headlines)]

    @cached_property
    def labels(self) -> list[str]:
        """The columns that say what a cell is: neither scores nor costs."""
        other = {*COST, *self.columns, "n", "seed", "intervals", "failed"}
        return [name for name in dict.fromkeys(name for row in self.rows for name in row) if name not in other]

    @cached_property
    def differing(self) -> list[str]:
        """The columns by which a reader tells the cells apart; of a single cell, what it is."""
        named = [name for name in (*SERIES, "steps", "guidance") if name in self.labels]
        return varying(self.named, self.labels) or named or self.labels[:1]

    @cached_property
    def floor_rows(self) -> list[Row]:
        """Of the floors by their name, `pictures`; they were not sampled, so they have no cost."""
        known = {name: row_of(card) for name, card in self.floors.items() if card.failed is None}
        return [{k: v for k, v in row.items() if k not in COST} | {"pictures": name} for name, row in known.items()]

    def name_of(self, row: Row) -> str:
        """What a reader calls a cell among the others."""
        return name_of(row, self.differing)

    def best(self, score: Score) -> Best:
        """By this score, with 95 % for all comparisons together (`dit.evaluation.statistics.winner`)."""
        pairs = [
            (row, part)
            for row, part in zip(self.named, self.parts, strict=True)
            if row["failed"] is None and score.known(row)
        ]
        rows = [row for row, _ in pairs]
        parts = [part[score.name] for _, part in pairs if score.name in part]
        if len(parts) == len(rows):
            try:
                place, tied = winner([row[score.name] for row in rows], parts, score.higher_is_better)
            except ValueError:  # parts that are not finite say nothing
                pass
            else:
                others = sorted((rows[i] for i in tied if i != place), key=lambda row: (cost_of(row), score.loss(row)))
                return Best(score, rows[place], others, len(rows) - 1)
        return Best(score, min(rows, key=score.loss), None, len(rows) - 1)


def cost_of(row: Row) -> float:
    """What a picture costs, to find the cheapest by."""
    return float(row.get("nfe", 0)) or float(row.get("seconds", 0))


def shortened(paths: Iterable[str]) -> dict[str, str]:
    """Each without the parts that all share, and without .ckpt."""
    split = {path: path.removesuffix(".ckpt").split("/") for path in paths}
    deep = {len(parts) for parts in split.values()}
    if len(split) < 2 or len(deep) > 1:
        return {path: path.removesuffix(".ckpt") for path in split}
    differ = [len({parts[i] for parts in split.values()}) > 1 for i in range(deep.pop())]
    brief = {path: "/".join(p for p, d in zip(parts, differ, strict=True) if d) for path, parts in split.items()}
    return {path: name or path for path, name in brief.items()}


def varying(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """Those of the columns in which the rows differ."""
    return [name for name in columns if len({row.get(name) for row in rows}) > 1]


def pareto_front(rows: Sequence[Row], cost: str, score: Score) -> list[Row]:
    """The rows that no other beats at the same or a lower cost, by cost."""
    front: list[Row] = []
    for row in sorted(rows, key=lambda r: (r[cost], score.loss(r))):
        if not front or score.loss(row) < score.loss(front[-1]):
            front.append(row)
    return front


def interval(row: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    """Of a row's score, where it is known and finite."""
    low, high = row.get("intervals", {}).get(name) or (math.nan, math.nan)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None
