"""The page of a table over runs, its curves, and its files."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from dit.evaluation.latex import table_latex
from dit.evaluation.page import picture, template
from dit.evaluation.plots import COLOURS, LINES, STYLE, label_percent, legend, plt, to_files
from dit.evaluation.results import is_share
from dit.evaluation.runs_table import SECONDS, RunsTable
from dit.evaluation.tables import Column, table
from dit.files import write_atomic

LOSS, RATE = "train/loss", "train/lr"
POINTS = 40  # that remain of a training loss after averaging
CURVES_NOTE = "One colour for each setting: thin lines are runs that differ only in the seed, thick lines their means."
LATEX_NOTE = r"""\usepackage{booktabs} in the preamble. Means over runs that differ only in the seed. Bold: the best;
*: not significantly different from it. Small numbers: distances to the ends of the 95 % interval of the mean."""


def curves_of(found: RunsTable) -> dict[str, Any]:
    """Returns a figure for each metric of the table that was logged at several steps, and for the training loss and the
    learning rate."""
    figures = {}
    for name in dict.fromkeys([*found.metrics, LOSS, RATE]):
        if any(len(run.curve(name)[0]) > 1 for run in found.runs):
            with plt.style.context(STYLE):
                figures[name] = curve(found, name)
    return figures


def curve(found: RunsTable, name: str) -> Any:
    """Plots a metric against steps: one colour for each setting, thin lines for its runs, a thick one for their mean.
    The training loss is averaged over neighbouring logged steps."""
    figure, axes = plt.subplots(figsize=(6.4, 3.8))
    lowest, highest = math.inf, -math.inf
    most = 1
    for place, row in enumerate(found.rows):
        turn, colour = divmod(place, len(COLOURS))
        style: dict[str, Any] = {"color": COLOURS[colour], "linestyle": LINES[turn % len(LINES)]}
        lines = [run.curve(name) for run in row.runs]
        if name == LOSS:
            width = max(1, max(len(steps) for steps, _ in lines) // POINTS)
            lines, most = [averaged(*line, width) for line in lines], max(most, width)
        lines = [line for line in lines if line[0]]
        several = len(lines) > 1
        for steps, values in lines:
            thin: dict[str, Any] = (
                {"linewidth": 0.7, "alpha": 0.5} if several else {"linewidth": 1.6, "label": row.name}
            )
            axes.plot(steps, values, marker="." if len(steps) < 2 else None, **style, **thin)
            lowest, highest = min(lowest, *values), max(highest, *values)
        if several:
            axes.plot(*mean_of(lines), linewidth=2.0, label=row.name, **style)
    if is_share(name):
        label_percent(axes.yaxis)
    elif lowest > 0 and highest > 10 * lowest:
        axes.set_yscale("log")
    axes.set_xlabel("optimizer steps")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(name + (f", mean of {most} logged steps" if most > 1 else ""))
    legend(figure, [axes])
    return figure


def averaged(steps: list[int], values: list[float], width: int) -> tuple[list[int], list[float]]:
    """Returns the means of `width` neighbouring values, at the last of their steps."""
    count = len(values) // width
    parts = np.reshape(values[: count * width], (count, width)).mean(1)
    return steps[width - 1 : count * width : width], parts.tolist()


def mean_of(lines: list[tuple[list[int], list[float]]]) -> tuple[list[int], list[float]]:
    """Returns the mean of several curves at the steps that all of them have."""
    shared = sorted(set.intersection(*(set(steps) for steps, _ in lines)))
    known = [dict(zip(*line, strict=True)) for line in lines]
    return shared, [sum(values[step] for values in known) / len(known) for step in shared]


def runs_content(found: RunsTable) -> dict[str, Any]:
    """Returns the table of single runs."""
    names = [*found.rows[0].values, "seed", "state", "step"]
    scores = [name for name in (*found.metrics, SECONDS) if any(name in run.metrics for run in found.runs)]
    columns = [*(Column(name, label=True) for name in names), *(Column(name) for name in scores), Column("run")]
    rows = [{**row, "run": os.path.relpath(str(row["run"]), found.folder)} for row in found.run_rows()]
    return table(rows, columns)


def page(found: RunsTable, plots: Mapping[str, Mapping[str, bytes]]) -> str:
    """Returns the page as HTML without links to other files."""
    states = Counter(run.state for run in found.runs)
    counted = ", ".join(f"{count} {state}" for state, count in states.items())
    return template("runs.html.j2").render(
        title=found.title,
        overview=f"{len(found.rows)} settings, {len(found.runs)} runs: {counted}.",
        finding=found.finding(),
        unfinished=found.unfinished(),
        settings=found.content(),
        notes=found.notes(),
        curves=[picture(name, files["png"], 0.43) for name, files in plots.items()],
        curves_note=CURVES_NOTE,
        runs=runs_content(found),
    )


def write_runs(found: RunsTable, folder: Path) -> dict[str, bytes]:
    """Writes runs.html, runs.csv (a row for each run), settings.csv and runs.tex (a row for each setting) and plots/;
    returns the plots as PNGs by name."""
    plots = {name: to_files(figure) for name, figure in curves_of(found).items()}
    for name, files in plots.items():
        for kind, data in files.items():
            write_atomic(folder / "plots" / f"{name.replace('/', '_')}.{kind}", data)
    write_atomic(folder / "runs.csv", found.runs_csv())
    write_atomic(folder / "settings.csv", found.settings_csv())
    write_atomic(folder / "runs.tex", table_latex(found.content(), LATEX_NOTE))
    write_atomic(folder / "runs.html", page(found, plots))
    return {name: files["png"] for name, files in plots.items()}
