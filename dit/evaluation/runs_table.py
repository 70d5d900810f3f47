"""A table over runs: a row for each setting, with means and intervals over the runs that differ only in the seed."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dit.errors import nearest
from dit.evaluation.results import Best, Score, is_share
from dit.evaluation.run_records import RunRecord, State, read_runs
from dit.evaluation.run_settings import Setting, settings_of
from dit.evaluation.side_by_side import table as text_table
from dit.evaluation.statistics import SHARE, mean_over_runs, winner_over_runs
from dit.evaluation.sweep import Row
from dit.evaluation.tables import columns_of, number, table, table_csv, with_interval

SECONDS = "train_seconds"
OTHER_STATES: tuple[State, ...] = ("running", "interrupted", "failed")


@dataclass(frozen=True)
class SettingRow:
    """The runs of one setting: all of them, and those that count: finished ones with different seeds."""

    values: Mapping[str, str]
    runs: Sequence[RunRecord]
    counted: Sequence[RunRecord]

    @property
    def name(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.values.items()) or "all runs"

    @property
    def states(self) -> str:
        """The number of finished runs, and those of other states: "2, 1 running"."""
        counts = Counter(run.state for run in self.runs)
        return ", ".join([str(len(self.counted)), *(f"{counts[s]} {s}" for s in OTHER_STATES if counts[s])])

    def scores(self, metric: str) -> list[float]:
        """Returns the metric of each run that counts; NaN where it is not finite."""
        return [run.metrics[metric] for run in self.counted if metric in run.metrics]


class RunsTable:
    """The runs below a folder. metrics: the columns, by default the main metrics of the runs.

    Raises ValueError if there are no runs, or if no run has one of the metrics."""

    def __init__(self, folder: Path, metrics: Sequence[str] | None = None) -> None:
        self.folder, self.title = folder.absolute(), folder.absolute().name
        self.runs = read_runs(folder)
        self.settings = settings_of([run.origin for run in self.runs])
        self.better = {name: up for run in self.runs for name, up in run.headlines.items()}
        known = dict.fromkeys(name for run in self.runs for name in run.metrics)
        for name in metrics or ():
            if name not in known:
                raise ValueError(f"--metric {name}: no run has it.{nearest(name, known)}")
        self.metrics = list(metrics or self.main_metrics(known))

    def main_metrics(self, known: Mapping[str, object]) -> list[str]:
        """Returns the metric that the runs optimize, then scores, then losses."""
        chosen = [run.origin.config.get("optimized_metric") for run in self.runs]
        first = [str(name) for name in chosen if name in known]
        return list(dict.fromkeys([*first, *(n for n in self.better if "loss" not in n), *self.better]))

    @cached_property
    def rows(self) -> list[SettingRow]:
        """A row for each setting, in the order of the runs."""
        groups: dict[str, list[tuple[RunRecord, Setting]]] = {}
        for run, setting in zip(self.runs, self.settings, strict=True):
            groups.setdefault(setting.name, []).append((run, setting))
        return [
            SettingRow(
                group[0][1].values,
                [run for run, _ in group],
                list({setting.seed: run for run, setting in group if run.state == "finished"}.values()),
            )
            for group in groups.values()
        ]

    @property
    def repeated(self) -> list[str]:
        """A sentence for each setting with several finished runs of one seed, of which the last one counts."""
        found = []
        for row in self.rows:
            if more := sum(run.state == "finished" for run in row.runs) - len(row.counted):
                found.append(f"{row.name}: {more} finished runs repeat the seed of another and do not count.")
        return found

    @cached_property
    def folded(self) -> list[Row]:
        """The rows as values: the setting, the number of runs, and means with intervals, those of accuracies limited to
        [0, 1] and of seconds to 0. There is no interval where all runs have the same score."""
        return [self.folded_row(row) for row in self.rows]

    def folded_row(self, row: SettingRow) -> Row:
        found: Row = {**row.values, "runs": row.states, "intervals": {}}
        for name in (*self.metrics, SECONDS):
            if scores := row.scores(name):
                bounds = SHARE if is_share(name) else (0.0 if name == SECONDS else -math.inf, math.inf)
                found[name], interval = mean_over_runs(scores, bounds)
                if interval is not None:
                    found["intervals"][name] = interval
        return found

    @cached_property
    def bests(self) -> list[Best]:
        """The best setting by each metric for which it is known whether higher is better, if there are several."""
        found = []
        for name in self.metrics:
            score = Score(name, self.better.get(name, False), is_share(name))
            pairs = [(r, f) for r, f in zip(self.rows, self.folded, strict=True) if score.known(f)]
            if name in self.better and len(pairs) > 1:
                best, tied = winner_over_runs([row.scores(name) for row, _ in pairs], score.higher_is_better)
                others = None if tied is None else [pairs[i][1] for i in tied if i != best]
                found.append(Best(score, pairs[best][1], others, len(pairs) - 1))
        return found

    @property
    def labels(self) -> list[str]:
        return [*self.rows[0].values, "runs"]

    def content(self) -> dict[str, Any]:
        """Returns the table for LaTeX and HTML (`dit.evaluation.tables.table`)."""
        scores = [name for name in (*self.metrics, SECONDS) if any(name in row for row in self.folded)]
        return table(self.folded, columns_of(self.folded, self.labels, scores), self.bests)

    def notes(self) -> list[str]:
        """Returns what a reader should know about the numbers, one sentence each."""
        found = list(self.repeated)
        if any(len(row.counted) > 1 for row in self.rows):
            found.append(
                "Intervals: 95 %, of the mean over runs that differ only in the seed (Student's t); wide for few runs."
            )
        elif len(self.rows) > 1:
            found.append("One run of each setting: whether settings differ by more than the seed is not known.")
        if any(best.tied is not None for best in self.bests):
            found.append(
                "★ best mean; ≈ not significantly different from it (Welch's test over runs, 95 % for all together)."
            )
        elif self.bests:
            found.append("★ best.")
        return found

    def finding(self) -> list[str]:
        """Returns the best setting by the first metric in words."""
        if not self.bests:
            return []
        best = self.bests[0]
        name = best.score.name
        row = next(row for row, folded in zip(self.rows, self.folded, strict=True) if folded is best.row)
        count = f"{len(row.counted)} run{'s' * (len(row.counted) > 1)}"
        found = [f"Best by {name}: {row.name}, {with_interval(best.row, name)} ({count})."]
        if best.tied is not None:
            found.append(f"Not significantly different: {len(best.tied)} of {best.others} others.")
        return found

    def unfinished(self) -> list[str]:
        """Returns a line for each run that is not finished."""
        return [
            f"{run.state} at step {run.step}: {run.path}" + (f" ({run.reason})" if run.reason else "")
            for run in self.runs
            if run.state != "finished"
        ]

    def text(self) -> str:
        """Returns the table as plain text, with the finding, the runs that are not finished, and notes."""
        content = self.content()
        marks = {"★": " ★", "≈": " ≈", "": ""}
        titles = [column.name for column in content["columns"]]
        rows = [
            [
                cell["text"] if column.label else text_of(folded, column.name) + marks[cell["mark"]]
                for cell, column in zip(cells, content["columns"], strict=True)
            ]
            for cells, folded in zip(content["rows"], self.folded, strict=True)
        ]
        parts = [
            text_table(titles, rows),
            " ".join(self.finding()),
            "\n".join(self.unfinished()),
            "\n".join(self.notes()),
        ]
        return "\n\n".join(part for part in parts if part)

    def settings_csv(self) -> str:
        """Returns the table as CSV, with the ends of each interval and the number of runs that count."""
        rows = [
            {**folded, "runs": len(row.counted), "all_runs": len(row.runs)}
            for row, folded in zip(self.rows, self.folded, strict=True)
        ]
        return table_csv(rows)

    def run_rows(self) -> list[Row]:
        """Returns a row for each run: its settings, seed, state, steps and all metrics, and its directory."""
        return [
            {
                **setting.values,
                "seed": setting.seed,
                "state": run.state,
                "step": run.step,
                **{name: value for name, value in run.metrics.items() if name != "steps"},
                "reason": run.reason,
                "run": str(run.path),
            }
            for run, setting in zip(self.runs, self.settings, strict=True)
        ]

    def runs_csv(self) -> str:
        text = io.StringIO()
        rows = self.run_rows()
        last = ("reason", "run")
        columns = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in last]
        writer = csv.DictWriter(text, [*columns, *last], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


def text_of(row: Row, name: str) -> str:
    """Returns a mean with its interval as text; "-" if it is missing."""
    if name not in row:
        return "-"
    return with_interval(row, name) if row["intervals"].get(name) else number(float(row[name]))
