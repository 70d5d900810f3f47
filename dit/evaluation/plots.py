"""Curves of a sweep: quality against steps, and against network evaluations with the Pareto front."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from dit.evaluation.sweep import Row

NOT_SCORES = ("sampler", "steps", "guidance", "nfe", "n", "images_per_second", "seed")
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)  # safe for colour-blind eyes
MARKERS = "osD^vP*X"


def lower_is_better(metric: str) -> bool:
    return metric.startswith(("f", "kid", "cmmd"))


def main_metrics(rows: Sequence[Row]) -> list[str]:
    """The metrics worth a plot: all but the accuracies of single attributes."""
    return [k for k in rows[0] if k not in NOT_SCORES and not k.startswith("accuracy_")]


def pareto_front(rows: Sequence[Row], cost: str, metric: str) -> list[Row]:
    """The rows that no other beats at the same or a lower cost, by cost."""
    sign = 1 if lower_is_better(metric) else -1
    front: list[Row] = []
    for row in sorted(rows, key=lambda r: (r[cost], sign * r[metric])):
        if not front or sign * row[metric] < sign * front[-1][metric]:
            front.append(row)
    return front


def _finish(axes: Axes, metric: str, x: str) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_xlabel(x)
    axes.set_ylabel(f"{metric} ({'lower' if lower_is_better(metric) else 'higher'} is better)")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _ceiling(axes: Axes, metric: str, ceilings: Mapping[str, Mapping[str, float]]) -> None:
    for style, (name, scores) in zip((":", "--"), ceilings.items(), strict=False):
        axes.axhline(scores[metric], color="grey", linestyle=style, linewidth=1, label=f"{name} pictures")


def against_steps(rows: Sequence[Row], metric: str, ceilings: Mapping[str, Mapping[str, float]]) -> Figure:
    """One panel for each guidance scale, one line for each sampler."""
    scales = sorted({row["guidance"] for row in rows})
    figure, panels = plt.subplots(
        1,
        len(scales),
        figsize=(1.2 + 3.4 * len(scales), 3.6),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    samplers = list(dict.fromkeys(row["sampler"] for row in rows))
    for axes, scale in zip(panels[0], scales, strict=True):
        for place, sampler in enumerate(samplers):
            line = [r for r in rows if r["sampler"] == sampler and r["guidance"] == scale]
            line.sort(key=lambda r: r["steps"])
            style = {"color": COLOURS[place % 7], "marker": MARKERS[place % 8], "markersize": 5}
            axes.plot([r["steps"] for r in line], [r[metric] for r in line], label=sampler, alpha=0.85, **style)
        _ceiling(axes, metric, ceilings)
        _finish(axes, metric, "steps")
        axes.set_xticks(sorted({row["steps"] for row in rows}))
        axes.set_title(f"guidance {scale:g}", fontsize=10)
        axes.label_outer()
    panels[0][-1].legend(fontsize=8, frameon=False)
    return figure


def against_cost(
    rows: Sequence[Row], metric: str, ceilings: Mapping[str, Mapping[str, float]], cost: str = "nfe"
) -> Figure:
    """Every cell as a point, its sampler by colour and its guidance by marker, and the Pareto front through them."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    samplers = list(dict.fromkeys(row["sampler"] for row in rows))
    scales = sorted({row["guidance"] for row in rows})
    for (i, sampler), (j, scale) in product(enumerate(samplers), enumerate(scales)):
        some = [r for r in rows if r["sampler"] == sampler and r["guidance"] == scale]
        style: dict[str, Any] = {"color": COLOURS[i % 7], "marker": MARKERS[j % 8], "s": 34, "alpha": 0.8}
        axes.scatter(
            [r[cost] for r in some],
            [r[metric] for r in some],
            label=f"{sampler}, guidance {scale:g}",
            **style,
        )
    front = pareto_front(rows, cost, metric)
    axes.step(
        [r[cost] for r in front],
        [r[metric] for r in front],
        where="post",
        color="black",
        lw=1,
        label="Pareto front",
    )
    _ceiling(axes, metric, ceilings)
    _finish(axes, metric, "network evaluations for each picture (NFE)" if cost == "nfe" else cost)
    axes.set_xticks([2.0**k for k in range(1, 9) if min(r[cost] for r in rows) <= 2**k <= max(r[cost] for r in rows)])
    axes.legend(fontsize=7, frameon=False, bbox_to_anchor=(1.01, 1), loc="upper left")
    return figure


def to_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()
