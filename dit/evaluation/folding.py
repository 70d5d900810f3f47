"""Results of runs that differ only in the seed, folded: one row for each setting and way to sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dit.evaluation.card import Card
from dit.evaluation.results import Best, Results, Score, cost_of, is_share
from dit.evaluation.statistics import SHARE, UNKNOWN, Interval, corrected, mean_over_runs, paired, unpaired, verdict
from dit.evaluation.sweep import Row

READING = (
    "Rows are means over runs that differ only in the seed of training, with the 95 % interval of the mean over runs "
    "(Student's t); results.csv has the single runs. Rows of one setting are compared picture by picture, rows of "
    "different settings by Welch's test over runs."
)


@dataclass(frozen=True)
class Folded(Results):
    """Results whose cells are means over runs. places: the cells of each row in the results of single runs, without
    failed ones. repeats: the scores of these cells by column. shares: the columns that are shares of the pictures."""

    places: Sequence[Sequence[int]] = ()
    repeats: Sequence[Mapping[str, Sequence[float]]] = ()
    shares: frozenset[str] = frozenset()

    @property
    def labels(self) -> list[str]:
        return [name for name in super().labels if name != "runs"]

    @property
    def row_labels(self) -> list[str]:
        return [*self.differing, "runs"]

    @property
    def reading(self) -> str:
        return READING

    @cached_property
    def scores(self) -> list[Score]:
        return [replace(score, share=score.name in self.shares) for score in super().scores]

    def best(self, score: Score) -> Best:
        """Returns the best row, and the rows that are not significantly different from it, 95 % for all together."""
        best = self.best_place(score)
        others = [i for i in self.known_places(score) if i != best]
        confidence = corrected(len(others))
        found = [self.difference(best, i, score.name, confidence) for i in others]
        if None in found:
            return Best(score, self.named[best], None, len(others))
        pairs = zip(others, found, strict=True)
        tied = [i for i, d in pairs if d is not None and verdict(d, score.higher_is_better) != "worse"]
        rows = sorted((self.named[i] for i in tied), key=lambda row: (cost_of(row), score.loss(row)))
        return Best(score, self.named[best], rows, len(others))

    def difference(self, one: int, other: int, column: str, confidence: float) -> Interval | None:
        """Returns the interval of the other row's score minus that of `one`; None if it is not known."""
        if self.settings[one] != self.settings[other]:
            runs = [torch.tensor(self.repeats[i][column], dtype=torch.float64) for i in (one, other)]
            return unpaired(runs[0], runs[1], confidence)
        parts = [self.parts[i].get(column) for i in (one, other)]
        a, b = parts
        if a is None or b is None or not (a.isfinite().all() and b.isfinite().all()):
            return None
        same = a.dtype == b.dtype
        return paired(a if same else a.double(), [b if same else b.double()], confidence)[0]


def fold(results: Results) -> Results:
    """Returns the results with a row for each setting and way to sample; the results themselves if no runs differ only
    in the seed."""
    groups: dict[object, list[int]] = {}
    named = results.named
    labels = [name for name in results.labels if name != "checkpoint"]
    for i, (card, setting) in enumerate(zip(results.cards, results.settings, strict=False)):
        ways = [card.subject.get("step"), *(named[i].get(name) for name in labels)]
        groups.setdefault((setting.name, *ways) if setting else i, []).append(i)
    if len(groups) == len(results.settings):
        return results
    places = [[i for i in group if results.cards[i].failed is None] or group[:1] for group in groups.values()]
    shares = frozenset(n for parts in results.parts for n, part in parts.items() if part.dtype == torch.bool)
    shares |= {name for card in results.cards for name in card.scores if is_share(name)}
    cards = [[results.cards[i] for i in group] for group in places]
    settings = [results.settings[group[0]] for group in places]
    own = {field.name: getattr(results, field.name) for field in fields(Results)}
    own |= {
        "cards": [folded_card(group, shares) for group in cards],
        "parts": [mean_parts([results.parts[i] for i in group]) for group in places],
        "strips": [results.strips[group[0]] for group in places],
        "settings": [None if setting is None else replace(setting, seed=0) for setting in settings],
    }
    return Folded(**own, places=places, repeats=[repeats_of(group) for group in cards], shares=shares)


def folded_models(results: Results) -> list[Row]:
    """Returns the scores of models as rows, those of runs that differ only in the seed as one row: the mean over runs,
    its interval, and their number (runs). A single run keeps its standard errors over pictures. Without runs that
    differ only in the seed returns `Results.model_rows`."""
    groups: dict[str, list[Mapping[str, float]]] = {}
    for model in results.models:
        groups.setdefault(model["group"], []).append(model["scores"])
    if len(groups) == len(results.models):
        return results.model_rows
    rows = []
    for name, runs in groups.items():
        means = {
            score: mean_over_runs([run[score] for run in runs]) for score in runs[0] if f"{score}_error" in runs[0]
        }
        intervals = {score: interval for score, (_, interval) in means.items() if interval is not None}
        scores = dict(runs[0]) if len(runs) == 1 else {score: mean for score, (mean, _) in means.items()}
        rows.append({"model": name, "runs": len(runs), **scores, "intervals": intervals})
    return rows


def repeats_of(cards: Sequence[Card]) -> dict[str, list[float]]:
    """Returns the scores of cards in every column that all of them have."""
    shared = [name for name in cards[0].scores if all(name in card.scores for card in cards)]
    return {name: [card.scores[name] for card in cards] for name in shared}


def folded_card(cards: Sequence[Card], shares: frozenset[str]) -> Card:
    """Returns a card with the means of several cards, and as intervals those of the mean over them; a single card with
    its own intervals. Equal scores have no interval: they say nothing of the spread over runs."""
    first, repeats = cards[0], repeats_of(cards)
    subject: dict[str, Any] = {**first.subject, "runs": len(cards)}
    if len(cards) == 1:
        return replace(first, subject=subject)
    means = {n: mean_over_runs(values, SHARE if n in shares else UNKNOWN) for n, values in repeats.items()}
    scores = {name: mean for name, (mean, _) in means.items()}
    intervals = {name: interval for name, (_, interval) in means.items() if interval is not None}
    costs = {
        name: sum(card.cost[name] for card in cards) / len(cards)
        for name in first.cost
        if all(name in card.cost for card in cards)
    }
    lost = {name: reason for card in cards for name, reason in card.lost.items()}
    return replace(first, subject=subject, scores=scores, intervals=intervals, cost=costs, lost=lost)


def mean_parts(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Returns the mean contribution of each picture over several runs, for the columns that all of them have."""
    if len(parts) == 1:
        return dict(parts[0])
    shared = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: torch.stack([part[name].double() for part in parts]).mean(0) for name in shared}
