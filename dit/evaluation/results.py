"""The results of a sweep: its cells as rows, their names, and the best of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dit.cost import Price
from dit.evaluation.card import Card
from dit.evaluation.sampling_cost import THOUSAND, per_thousand
from dit.evaluation.statistics import winner
from dit.evaluation.sweep import Row, name_of, row_of

if TYPE_CHECKING:
    from dit.evaluation.run_settings import Setting

CACHE_COST = ("effective_nfe", "blocks_computed", "blocks_saved")  # of cells with a step cache
COST = ("nfe", "seconds", "images_per_second", "joules_nvml", "joules_rapl", *CACHE_COST, "total_seconds")
# Cells that differ in these are not one line.
SERIES = ("sampler", "model", "checkpoint", "weights", "adapter_scale", "images", "grid", "cache")


@dataclass(frozen=True)
class Score:
    """A column of a sweep to plot. share: True for a share of the pictures, in [0, 1]. size: of the pictures, 768x512,
    for the axis."""

    name: str
    higher_is_better: bool
    share: bool = False
    size: str = ""

    @property
    def title(self) -> str:
        at = f" at {self.size}" if self.size else ""
        return f"{self.name}{at} ({'higher' if self.higher_is_better else 'lower'} is better)"

    def loss(self, row: Row) -> float:
        """Returns the value, negated if higher is better."""
        return -row[self.name] if self.higher_is_better else row[self.name]

    def known(self, row: Mapping[str, Any]) -> bool:
        return isinstance(row.get(self.name), (int, float)) and math.isfinite(row[self.name])


def is_share(name: str) -> bool:
    """Returns whether the column of this name is a share of the pictures, also where their parts are not known."""
    return "accuracy" in name


@dataclass(frozen=True)
class Best:
    """row: with the best score. tied: the rows that are not significantly different from it, the cheapest first; None
    if the score has no parts. others: number of rows besides the best."""

    score: Score
    row: Row
    tied: Sequence[Row] | None
    others: int


@dataclass(frozen=True)
class Results:
    """The results of one size: scores of different sizes are not compared.

    cards, parts (`Card.write`) and strips: one for each cell. A strip is its first pictures, (S, 3, H, W) uint8, of the
    first S prompts. headlines: the columns to plot, and whether higher is better; the first one decides which cell is
    best. floors: cards of real pictures. models: scores of the models themselves (`ModelScores.rows`). confirmation:
    the best cell on fresh noise. notes: limits of these scores, one sentence each. settings: of the run of each cell,
    or None for other models; empty for one run. price: of an hour of all machines that sampled.
    """

    title: str
    cards: Sequence[Card]
    parts: Sequence[Mapping[str, Tensor]]
    strips: Sequence[Tensor]
    prompts: Sequence[str]
    headlines: Mapping[str, bool]
    floors: Mapping[str, Card] = field(default_factory=dict)
    models: Sequence[Mapping[str, Any]] = ()
    confirmation: Card | None = None
    notes: Sequence[str] = ()
    settings: Sequence[Setting | None] = ()
    price: Price = field(default_factory=Price)

    @property
    def size(self) -> str:
        """The size of the pictures, 768x512; "" if none were sampled."""
        return str(self.cards[0].subject.get("size", "")) if self.cards else ""

    @cached_property
    def rows(self) -> list[Row]:
        """The cells as rows, with the cost of a thousand pictures. If any has a step cache, the effective NFE of the
        others is their NFE."""
        rows = [row | per_thousand(row, self.price) for row in map(row_of, self.cards)]
        cached = any("effective_nfe" in row for row in rows)
        return [row | {"effective_nfe": cost_of(row)} if cached and row.get("nfe") else row for row in rows]

    @cached_property
    def model_rows(self) -> list[Row]:
        """The scores of the models as rows."""
        return [{"model": model["model"], **model["scores"]} for model in self.models]

    @property
    def table(self) -> list[Row]:
        """The rows of results.csv: the cells, with the settings and the seed of their run if there are several, or the
        models if nothing was sampled."""
        settings = self.settings or [None] * len(self.rows)
        return [run_columns(s) | row for s, row in zip(settings, self.rows, strict=True)] or self.table_of_models

    @property
    def table_of_models(self) -> list[Row]:
        """The rows of models.csv: the models, with the settings and the seed of their run if there are several."""
        pairs = zip(self.models, self.model_rows, strict=True)
        return [run_columns(model["setting"]) | row for model, row in pairs]

    @cached_property
    def named(self) -> list[Row]:
        """The rows with short names of the checkpoints: the settings in which their runs differ, or else paths."""
        if self.settings:
            names = checkpoint_names([str(row.get("checkpoint", "")) for row in self.rows], self.settings)
            return [row | {"checkpoint": name} if name else row for row, name in zip(self.rows, names, strict=True)]
        short = short_paths(row["checkpoint"] for row in self.rows if "checkpoint" in row)
        named = {path: name.removesuffix(".ckpt") for path, name in short.items()}
        return [row | {"checkpoint": named[row["checkpoint"]]} if "checkpoint" in row else row for row in self.rows]

    @cached_property
    def scored(self) -> list[Row]:
        """The named rows that have scores."""
        return [row for row in self.named if row["failed"] is None]

    @cached_property
    def scores(self) -> list[Score]:
        """The headlines that any cell has."""
        shares = {name for parts in self.parts for name, part in parts.items() if part.dtype == torch.bool}
        found = [Score(name, up, name in shares or is_share(name), self.size) for name, up in self.headlines.items()]
        return [score for score in found if any(score.known(row) for row in self.scored)]

    @cached_property
    def columns(self) -> list[str]:
        """The columns of all scores, the headlines first."""
        names = dict.fromkeys(name for card in self.cards if card.failed is None for name in card.scores)
        return [*(n for n in self.headlines if n in names), *(n for n in names if n not in self.headlines)]

    @cached_property
    def labels(self) -> list[str]:
        """The columns that identify a cell: neither scores nor costs."""
        other = {*COST, *self.columns, "n", "seed", "intervals", "failed"}
        names = dict.fromkeys(name for row in self.rows for name in row)
        return [name for name in names if name not in other and not name.endswith(THOUSAND)]

    @cached_property
    def differing(self) -> list[str]:
        """The labels in which the cells differ; for a single cell, those that describe it."""
        named = [name for name in (*SERIES, "steps", "guidance") if name in self.labels]
        return varying(self.named, self.labels) or named or self.labels[:1]

    @property
    def row_labels(self) -> list[str]:
        """The columns that identify a row of a table."""
        return self.differing

    @property
    def reading(self) -> str:
        """What a reader of the tables has to know about their rows."""
        return ""

    @cached_property
    def floor_rows(self) -> list[Row]:
        """The floors as rows, named by the column `pictures`. They have no cost, because they were not sampled."""
        known = {name: row_of(card) for name, card in self.floors.items() if card.failed is None}
        return [{k: v for k, v in row.items() if k not in COST} | {"pictures": name} for name, row in known.items()]

    def name_of(self, row: Row) -> str:
        """Returns the name of a cell: the labels in which it differs from others."""
        return name_of(row, self.differing)

    def known_places(self, score: Score) -> list[int]:
        """Returns the places of the rows that have this score."""
        return [i for i, row in enumerate(self.named) if row["failed"] is None and score.known(row)]

    def best_place(self, score: Score) -> int:
        """Returns the place of the row with the best score."""
        return min(self.known_places(score), key=lambda i: score.loss(self.named[i]))

    def best(self, score: Score) -> Best:
        """Returns the best row by this score, with 95 % confidence for all comparisons together
        (`dit.evaluation.statistics.winner`)."""
        known = self.known_places(score)
        rows = [self.named[i] for i in known]
        parts = [self.parts[i][score.name] for i in known if score.name in self.parts[i]]
        if len(parts) == len(rows):
            try:
                best, tied = winner([row[score.name] for row in rows], parts, score.higher_is_better)
            except ValueError:  # parts that are not finite
                pass
            else:
                others = sorted((rows[i] for i in tied if i != best), key=lambda row: (cost_of(row), score.loss(row)))
                return Best(score, rows[best], others, len(rows) - 1)
        return Best(score, self.named[self.best_place(score)], None, len(rows) - 1)


def run_columns(setting: Setting | None) -> Row:
    """Returns the columns of results.csv and models.csv that say of which run a row is, if there are several."""
    return {} if setting is None else {"setting": setting.name, "training_seed": setting.seed}


def checkpoint_names(labels: Sequence[str], settings: Sequence[Setting | None]) -> list[str]:
    """Returns a name for the checkpoint of each cell: lr=4e-3, seed=1, and its step if the steps differ. labels: paths
    of the checkpoints; a cell without a setting is named by the end of its path."""
    known = [(setting, Path(label).stem) for label, setting in zip(labels, settings, strict=True) if setting]
    seeds, steps = len({setting.seed for setting, _ in known}) > 1, len({stem for _, stem in known}) > 1
    names = []
    for label, setting in zip(labels, settings, strict=True):
        step = re.sub("^step_0*", "step ", Path(label).stem)
        parts = [step] if setting is None else [setting.name, f"seed={setting.seed}" * seeds, step * steps]
        names.append(", ".join(filter(None, parts)))
    return names


def cost_of(row: Row) -> float:
    """Returns the NFE of a picture, with a step cache the effective NFE, or its seconds if it has no NFE."""
    return float(row.get("effective_nfe") or row.get("nfe", 0)) or float(row.get("seconds", 0))


def calls_column(rows: Sequence[Row]) -> str:
    """Returns the column of the network evaluations of a picture: effective ones if a cell has a step cache."""
    return "effective_nfe" if any("effective_nfe" in row for row in rows) else "nfe"


def short_paths(paths: Iterable[str]) -> dict[str, str]:
    """Returns each path without the first and the last parts that all of them share. A single path stays whole."""
    split = {path: path.split("/") for path in paths}
    if len(split) < 2:
        return {path: path for path in split}
    first = _shared(split.values())
    last = _shared([parts[first:][::-1] for parts in split.values()])
    return {path: "/".join(parts[first : len(parts) - last]) or path for path, parts in split.items()}


def _shared(lists: Iterable[list[str]]) -> int:
    """Returns the number of first elements that are equal in all lists."""
    return len(list(takewhile(lambda elements: len(set(elements)) == 1, zip(*lists, strict=False))))


def varying(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """Returns the columns in which the rows differ."""
    return [name for name in columns if len({row.get(name) for row in rows}) > 1]


def pareto_front(rows: Sequence[Row], cost: str, score: Score) -> list[Row]:
    """Returns the rows for which no other row is better at the same or a lower cost, sorted by cost."""
    front: list[Row] = []
    for row in sorted(rows, key=lambda r: (r[cost], score.loss(r))):
        if not front or score.loss(row) < score.loss(front[-1]):
            front.append(row)
    return front


def interval(row: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    """Returns the interval of a score in a row; None if it is unknown or not finite."""
    low, high = row.get("intervals", {}).get(name) or (math.nan, math.nan)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None
