"""Curves of a sweep: quality against steps, and against network evaluations with the Pareto front."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from dit.evaluation.sweep import Row

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # safe for colour-blind eyes
MARKERS = "osD^vP*X"
Ceilings = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Score:
    """A column of a sweep that is worth a plot, and which of its values are good."""

    name: str
    higher_is_better: bool

    @property
    def title(self) -> str:
        return f"{self.name} ({'higher' if self.higher_is_better else 'lower'} is better)"

    def loss(self, row: Row) -> float:
        """The less, the better."""
        return -row[self.name] if self.higher_is_better else row[self.name]


def colours_of(things: Sequence[str]) -> Sequence[Any]:
    """A colour for each of up to seven things; more get as many hues as there are."""
    count = len(things)
    return COLOURS if count <= len(COLOURS) else mpl.colormaps["turbo"].resampled(count)(range(count)).tolist()


def pareto_front(rows: Sequence[Row], cost: str, score: Score) -> list[Row]:
    """The rows that no other beats at the same or a lower cost, by cost."""
    front: list[Row] = []
    for row in sorted(rows, key=lambda r: (r[cost], score.loss(r))):
        if not front or score.loss(row) < score.loss(front[-1]):
            front.append(row)
    return front


def _finish(axes: Axes, x: str, ticks: Sequence[float]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_xlabel(x)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _ceiling(axes: Axes, score: Score, ceilings: Ceilings) -> None:
    for style, (name, scores) in zip((":", "--"), ceilings.items(), strict=False):
        if score.name in scores:  # not where there were too few real pictures for this N
            axes.axhline(scores[score.name], color="grey", linestyle=style, linewidth=1, label=f"{name} pictures")


def _spread(axes: Axes, rows: Sequence[Row], score: Score) -> None:
    """Distances that differ by orders of magnitude on a logarithmic scale: else the good ones are one line."""
    values = [row[score.name] for row in rows]
    if not score.higher_is_better and min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")


def against_steps(rows: Sequence[Row], score: Score, ceilings: Ceilings) -> Figure:
    """One panel for each guidance scale, three in a row, and one line for each sampler."""
    scales = sorted({row["guidance"] for row in rows})
    samplers = list(dict.fromkeys(row["sampler"] for row in rows))
    columns, lines = min(len(scales), 3), -(-len(scales) // 3)
    legend = -(-(len(samplers) + len(ceilings)) // (columns + 2))
    size = (1.2 + 2.6 * columns, 0.5 + 0.23 * legend + 2.7 * lines)
    figure, grid = plt.subplots(lines, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    panels = list(grid.flat)
    for axes in panels[len(scales) :]:
        axes.set_visible(False)
    colours = colours_of(samplers)
    for axes, scale in zip(panels, scales, strict=False):
        for place, sampler in enumerate(samplers):
            line = [r for r in rows if r["sampler"] == sampler and r["guidance"] == scale]
            line.sort(key=lambda r: r["steps"])
            style = {"color": colours[place], "marker": MARKERS[place % 8], "markersize": 6, "alpha": 0.85}
            axes.plot([r["steps"] for r in line], [r[score.name] for r in line], label=sampler, **style)
        _ceiling(axes, score, ceilings)
        _finish(axes, "steps", sorted({row["steps"] for row in rows}))
        axes.set_title(f"guidance {scale:g}", fontsize="medium")
    for axes in grid[:, 0]:
        axes.set_ylabel(score.title)
        _spread(axes, rows, score)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", frameon=False, ncols=columns + 2)
    return figure


def against_cost(rows: Sequence[Row], score: Score, ceilings: Ceilings, cost: str = "nfe") -> Figure:
    """Every cell as a point, its sampler by colour and its guidance by marker; the Pareto front is ringed."""
    samplers = list(dict.fromkeys(row["sampler"] for row in rows))
    scales = sorted({row["guidance"] for row in rows})
    legend = -(-(len(samplers) + len(scales) + len(ceilings) + 1) // 3)
    figure, axes = plt.subplots(figsize=(6.0, 4.0 + 0.23 * legend), layout="constrained")
    colours = colours_of(samplers)
    look: dict[str, Any] = {"s": 46, "alpha": 0.8}
    for (i, sampler), (j, scale) in product(enumerate(samplers), enumerate(scales)):
        some = [(r[cost], r[score.name]) for r in rows if r["sampler"] == sampler and r["guidance"] == scale]
        axes.scatter(*zip(*some, strict=True), color=colours[i], marker=MARKERS[j % 8], **look)
    for i, sampler in enumerate(samplers):  # empty ones, for the legend: a row for each look, not for each pair
        axes.scatter([], [], color=colours[i], label=sampler, **look)
    for j, scale in enumerate(scales):
        axes.scatter([], [], color="grey", marker=MARKERS[j % 8], label=f"guidance {scale:g}", **look)
    front = [(r[cost], r[score.name]) for r in pareto_front(rows, cost, score)]
    ring: dict[str, Any] = {"marker": "o", "markersize": 13, "markerfacecolor": "none", "drawstyle": "steps-post"}
    axes.plot(*zip(*front, strict=True), color="black", linewidth=1, label="Pareto front", **ring)
    _ceiling(axes, score, ceilings)
    costs = [row[cost] for row in rows]
    within = [2.0**k for k in range(-4, 16) if min(costs) <= 2**k <= max(costs)]
    _finish(axes, "network evaluations for each picture (NFE)" if cost == "nfe" else cost, within)
    axes.set_ylabel(score.title)
    _spread(axes, rows, score)
    figure.legend(loc="outside lower center", frameon=False, ncols=3)
    return figure


def to_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()
