"""What a sweep over the checkpoints of a fine-tuning says: subject fidelity against prompt fidelity, and the last
checkpoint before copying rises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from dit.evaluation.base_model import BASE
from dit.evaluation.results import Results, Score
from dit.evaluation.statistics import Interval, corrected, paired
from dit.evaluation.sweep import Row, name_of
from dit.evaluation.tables import with_interval
from dit.metrics.base import ImageMetric
from dit.metrics.clip import ClipScore
from dit.metrics.nearest_train import NearestTrain
from dit.metrics.prior_drift import PriorDrift
from dit.metrics.prompt_accuracy import PromptAccuracy
from dit.metrics.subject_fidelity import SubjectFidelity

ROLES: Mapping[str, tuple[type[ImageMetric], ...]] = {
    "subject": (SubjectFidelity,),
    "prompt": (PromptAccuracy, ClipScore),
    "copies": (NearestTrain,),
    "drift": (PriorDrift,),
}


def roles_of(metrics: Mapping[str, ImageMetric], headlines: Sequence[str]) -> dict[str, str]:
    """Returns the headline column of the first metric of each role, of the roles that there are."""
    found: dict[str, str] = {}
    for role, kinds in ROLES.items():
        names = [next(iter(m.headlines)) for m in metrics.values() if isinstance(m, kinds)]
        if names:
            found[role] = next(column for column in headlines if f"{column}_".startswith(f"{names[0]}_"))
    return found


@dataclass(frozen=True)
class Point:
    """A cell. step: of its weights. run: the run of its checkpoint. setting: all that distinguishes it besides its
    checkpoint. copies: for each picture whether it is a copy, (N,) bool."""

    row: Row
    step: int
    run: str
    setting: str
    copies: Tensor

    @property
    def is_base(self) -> bool:
        return self.checkpoint == BASE

    @property
    def checkpoint(self) -> str:
        return str(self.row["checkpoint"])


@dataclass(frozen=True)
class TradeOff:
    """The scores of a fine-tuning: columns of the results by role (`roles_of`)."""

    results: Results
    columns: Mapping[str, str]

    @classmethod
    def of(cls, results: Results, metrics: Mapping[str, ImageMetric]) -> TradeOff | None:
        """Returns None for results without checkpoints, or without one of subject fidelity, prompt fidelity and
        copies."""
        columns = roles_of(metrics, list(results.headlines))
        found = cls(results, columns)
        return found if {"subject", "prompt", "copies"} <= columns.keys() and found.points else None

    def score(self, role: str) -> Score:
        return next(score for score in self.results.scores if score.name == self.columns[role])

    @cached_property
    def points(self) -> list[Point]:
        """The cells that have all scores, in the order of their steps."""
        found = []
        for card, row, parts in zip(self.results.cards, self.results.named, self.results.parts, strict=True):
            if "checkpoint" in row and all(column in card.scores for column in self.columns.values()):
                run = str(card.subject["checkpoint"]).rpartition("/")[0]
                setting = name_of(row, [name for name in self.settings if row.get(name) is not None])
                found.append(Point(row, int(card.subject["step"]), run, setting, parts[self.columns["copies"]]))
        return sorted(found, key=lambda point: (not point.is_base, point.step))

    @cached_property
    def settings(self) -> list[str]:
        """The labels besides the checkpoint in which the cells differ."""
        return [name for name in self.results.differing if name not in ("checkpoint", "posthoc")]

    @cached_property
    def rises(self) -> dict[int, Interval]:
        """The copy rate of each point minus that of its reference, by the point's place: the simultaneous 95 %
        intervals of differences on the same prompts and noise. A reference has none."""
        references = {place: self._reference(point) for place, point in enumerate(self.points)}
        compared = {place: other for place, other in references.items() if other is not self.points[place]}
        confidence = corrected(len(compared))
        return {
            place: paired(other.copies, [self.points[place].copies], confidence)[0] for place, other in compared.items()
        }

    def _reference(self, point: Point) -> Point:
        """Returns the base that samples alike, or else the first checkpoint of the same setting."""
        alike = [other for other in self.points if other.is_base and self.samples_like(other, point)]
        return (alike or [p for p in self.points if (p.run, p.setting) == (point.run, point.setting)])[0]

    @staticmethod
    def samples_like(base: Point, point: Point) -> bool:
        """Returns whether two cells differ in the model only."""
        names = ("sampler", "grid", "steps", "guidance", "cache")
        return all(base.row.get(name) == point.row.get(name) for name in names)

    def risen(self, run: str) -> list[Point]:
        """Returns the points of a run that copy significantly more than their reference."""
        return [
            self.points[place] for place, (low, _) in self.rises.items() if low > 0 and self.points[place].run == run
        ]

    def last_good(self, run: str) -> Point | None:
        """Returns a point of the run's last checkpoint before copying rises; None if it rises at the first one."""
        first = min((point.step for point in self.risen(run)), default=None)
        own = [p for p in self.points if p.run == run and not p.is_base and (first is None or p.step < first)]
        return max(own, key=lambda point: point.step, default=None)

    @property
    def runs(self) -> list[str]:
        return list(dict.fromkeys(point.run for point in self.points if not point.is_base))

    def sentences(self) -> list[str]:
        """Returns for each run the last checkpoint before copying rises, and the scores there."""
        return [sentence for run in self.runs for sentence in self._sentences_of(run)]

    def _sentences_of(self, run: str) -> list[str]:
        risen, last = self.risen(run), self.last_good(run)
        copies, prefix = self.columns["copies"], f"{run}: " if len(self.runs) > 1 else ""
        against = "the base" if any(point.is_base for point in self.points) else "the first checkpoint"
        test = f"copies more than {against} on the same prompts and noise (95 %, for all cells together)"
        if not risen:
            assert last is not None
            found = f"Copying does not rise up to the last checkpoint, {last.checkpoint}: no cell {test}."
        else:
            first = min(risen, key=lambda point: (point.step, -point.row[copies]))
            where = f"{first.checkpoint}{', ' * bool(first.setting)}{first.setting}"
            values = [with_interval(point.row, copies) for point in (first, self._reference(first))]
            fact = f"{where} {test}: {copies} {values[0]} against {values[1]}."
            if last is None:
                return [f"{prefix}Copying has risen at the first checkpoint already: {fact} Save checkpoints earlier."]
            found = f"The last checkpoint before copying rises is {last.checkpoint}: {fact}"
        return [prefix + found, self._scores_at(run, last)]

    def _scores_at(self, run: str, last: Point) -> str:
        """Returns a sentence with the scores of a checkpoint, in the setting with the highest subject fidelity."""
        at = [point for point in self.points if (point.run, point.step) == (run, last.step)]
        best = max(at, key=lambda point: point.row[self.columns["subject"]])
        values = ", ".join(f"{column} {with_interval(best.row, column)}" for column in self.columns.values())
        where = f"Its highest subject fidelity is that with {best.setting}" if len(at) > 1 else "There"
        return f"{where}: {values}."
