"""Plots of a sweep: quality against steps, against guidance, and against cost with the Pareto front."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from dit.evaluation.results import SERIES, Score, cost_of, interval, pareto_front, varying
from dit.evaluation.sweep import Row, name_of

COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)  # distinct for colour-blind readers
MARKERS = "osD^vP*X"
LINES = ("-", "--", ":", "-.")
FLOOR_LINES = (":", "--", "-.")
AXES = {
    "steps": "steps",
    "guidance": "guidance scale",
    "nfe": "network evaluations for each picture (NFE)",
    "seconds": "seconds for each picture",
}
Floors = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class LineStyle:
    label: str
    colour: str
    marker: str
    line: str


def series_of(rows: Sequence[Row], columns: Sequence[str]) -> list[tuple[LineStyle, list[Row]]]:
    """Returns the rows of each combination of these columns, and their style: the colour stands for the first column
    that varies, the line and the marker for the others."""
    columns = varying(rows, columns) or [name for name in columns if name in rows[0]][:1]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name) for name in columns), []).append(row)
    colours, others = (list(dict.fromkeys(key[part] for key in groups)) for part in (slice(1), slice(1, None)))
    series = []
    for key, some in groups.items():
        colour, other = colours.index(key[:1]), others.index(key[1:])
        line = LINES[(other + colour // len(COLOURS)) % len(LINES)]
        marker = MARKERS[(colour + other) % len(MARKERS)]
        series.append((LineStyle(name_of(some[0], columns), COLOURS[colour % len(COLOURS)], marker, line), some))
    return series


def sparse(values: Sequence[float], log: bool) -> list[float]:
    """Returns the values, which rise, whose labels do not overlap on their axis."""
    at = [math.log(v) for v in values] if log else list(values)
    gap = (at[-1] - at[0]) / 9
    kept = [0]
    for i in range(1, len(values)):
        if at[i] - at[kept[-1]] >= gap:
            kept.append(i)
    return [values[i] for i in kept]


def _x_axis(axes: Axes, x: str, values: Sequence[float]) -> None:
    log = x != "guidance" and min(values) > 0
    if log:
        axes.set_xscale("log", base=2 if x != "seconds" else 10)
    if x == "seconds" and max(values) < 5 * min(values):
        axes.set_xscale("linear")
        axes.xaxis.set_major_locator(MaxNLocator(4))
    elif x == "seconds":
        subs = (1.0, 2.0, 5.0) if max(values) < 200 * min(values) else (1.0,)
        axes.xaxis.set_major_locator(LogLocator(subs=subs))
    else:
        powers = [2.0**k for k in range(20) if min(values) <= 2**k <= max(values)] if x == "nfe" else []
        axes.xaxis.set_major_locator(FixedLocator(sparse(powers or sorted(set(values)), log)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelbottom=True)
    axes.set_xlabel(AXES[x])
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _y_axis(axes: Axes, rows: Sequence[Row], score: Score, floors: Floors) -> None:
    """Shows shares in percent, and distances that differ by orders of magnitude on a logarithmic scale."""
    values, least = [row[score.name] for row in rows], -math.inf
    if score.share:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if max(values) - min(values) > 0.04 else 1))
    elif not score.higher_is_better and min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
        least = min(values) / 1000
        subs = (1.0, 2.0, 5.0) if max(values) < 1000 * min(values) else (1.0,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    _draw_floors(axes.axhline, floors, score, least)


def _draw_floors(draw_line: Callable[..., Any], floors: Floors, score: Score, least: float = -math.inf) -> None:
    """Draws a line at each floor above `least`. A floor lacks the score if there were too few real pictures for N."""
    for style, (name, scores) in zip(FLOOR_LINES, floors.items(), strict=False):
        if score.known(scores) and scores[score.name] > least:
            draw_line(scores[score.name], color="grey", linestyle=style, linewidth=1.2, label=f"{name} pictures")


def error_bars(rows: Sequence[Row], score: Score) -> tuple[list[float], list[float]]:
    """Returns the distances from each score to the lower and upper ends of its interval; NaN if it is unknown."""
    ends = [interval(row, score.name) or (math.nan, math.nan) for row in rows]
    below = [max(row[score.name] - low, 0.0) for row, (low, _) in zip(rows, ends, strict=True)]  # NaN stays NaN
    above = [max(high - row[score.name], 0.0) for row, (_, high) in zip(rows, ends, strict=True)]
    return below, above


def _panels(count: int, most: int, width: float, height: float, sharex: bool = False) -> tuple[Figure, list[Axes]]:
    columns, lines = min(count, most), -(-count // most)
    size = (max(5.4, 1.0 + width * columns), height * lines)
    layout: dict[str, Any] = {"sharex": sharex, "sharey": True, "squeeze": False, "layout": "constrained"}
    figure, grid = plt.subplots(lines, columns, figsize=size, **layout)
    for axes in list(grid.flat)[count:]:
        axes.set_visible(False)
    return figure, list(grid.flat)[:count]


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Adds one legend for all panels below them, and its height to the figure."""
    found = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if not found:
        return
    width = 0.7 + 0.085 * max(len(label) for label in found)
    columns = max(1, min(len(found), 5, int(figure.get_figwidth() / width)))
    figure.set_figheight(figure.get_figheight() + 0.1 + 0.24 * -(-len(found) // columns))
    figure.legend(found.values(), found.keys(), loc="outside lower center", frameon=False, ncols=columns)


def curves(rows: Sequence[Row], score: Score, floors: Floors, x: str = "steps", panel: str = "guidance") -> Figure:
    """Plots quality against steps or guidance: a panel for each value of the other, a line for each series. Points are
    shifted sideways so that their 95 % intervals do not cover each other."""
    values = sorted({row[x] for row in rows})
    kinds = sorted({row[panel] for row in rows if panel in row}) or [None]
    figure, panels = _panels(len(kinds), 3, 2.7, 3.1)
    series = series_of(rows, SERIES)
    for axes, kind in zip(panels, kinds, strict=True):
        for i, (style, some) in enumerate(series):
            line = sorted((row for row in some if row.get(panel) == kind), key=lambda row: row[x])
            shift = (i - (len(series) - 1) / 2) * min(0.06, 0.4 / len(series))
            at = [row[x] * 2**shift if x == "steps" else row[x] + shift * (values[-1] - values[0]) / 4 for row in line]
            look: dict[str, Any] = {"color": style.colour, "marker": style.marker, "linestyle": style.line}
            look |= {"markersize": 5, "linewidth": 1.3, "alpha": 0.85, "label": style.label or None}
            look["elinewidth"] = 0.9 if len(series) <= 6 else 0.4  # many thick bars would hide the lines
            axes.errorbar(at, [row[score.name] for row in line], error_bars(line, score), **look)
        _x_axis(axes, x, values)
        _y_axis(axes, rows, score, floors)
        if kind is not None:
            axes.set_title(f"guidance {kind:g}" if panel == "guidance" else f"{kind} steps", fontsize="medium")
    _limits(panels, rows, score)
    figure.supylabel(score.title, fontsize="medium")
    _legend(figure, panels)
    return figure


def against_cost(rows: Sequence[Row], score: Score, floors: Floors, cost: str = "nfe") -> Figure:
    """Plots every cell as a point: the sampler by colour, guidance by marker, and a panel for each model, weights or
    grid, or these by colour if there is one sampler. The line in all panels is the Pareto front of all cells; cells on
    the front have a ring, their steps and their interval."""
    panelled = varying(rows, [name for name in SERIES if name != "sampler"])
    coloured = varying(rows, ["sampler"]) or ["guidance"]
    if coloured == ["guidance"] and len(panelled) == 1 and len({row.get(panelled[0]) for row in rows}) <= len(COLOURS):
        coloured, panelled = panelled, []
    marks = {scale: MARKERS[i % len(MARKERS)] for i, scale in enumerate(sorted({r.get("guidance", 0) for r in rows}))}
    kinds = list(dict.fromkeys(name_of(row, panelled) for row in rows))
    figure, panels = _panels(len(kinds), 2, 3.6 if len(kinds) > 1 else 5.0, 3.8, sharex=True)
    front = pareto_front(rows, cost, score)
    for axes, kind in zip(panels, kinds, strict=True):
        for style, some in series_of(rows, coloured):
            for scale, marker in marks.items():
                here = [r for r in some if r.get("guidance", 0) == scale and name_of(r, panelled) == kind]
                x, y = [r[cost] for r in here], [r[score.name] for r in here]
                axes.plot(x, y, marker, color=style.colour, markersize=6.5, alpha=0.75, mew=0)
            if varying(rows, coloured):
                axes.plot([], [], "o", color=style.colour, markersize=6.5, label=style.label)
        for scale, marker in marks.items() if len(marks) > 1 and coloured != ["guidance"] else ():
            axes.plot([], [], marker, color="grey", markersize=6.5, label=f"guidance {scale:g}")
        own = [row for row in front if name_of(row, panelled) == kind]
        at = [row[cost] for row in own], [row[score.name] for row in own]
        stairs = [row[cost] for row in front], [row[score.name] for row in front]
        axes.plot(*stairs, color="black", linewidth=0.9, drawstyle="steps-post", alpha=0.6)
        axes.errorbar(*at, error_bars(own, score), fmt="none", ecolor="black", elinewidth=0.9, alpha=0.6)
        axes.plot(*at, "o", color="black", markersize=12, markerfacecolor="none", label="Pareto front")
        for row in own:
            steps_text = f"{row['steps']:g}" if "steps" in row else ""
            offset = (7, 7 if score.higher_is_better else -14)
            axes.annotate(steps_text, (row[cost], row[score.name]), xytext=offset, textcoords="offset points")
        axes.margins(y=0.09)
        _x_axis(axes, cost, [row[cost] for row in rows])
        _y_axis(axes, rows, score, floors)
        axes.set_title(kind, fontsize="medium")
    _limits(panels, rows, score)
    figure.supylabel(score.title, fontsize="medium")
    _legend(figure, panels)
    return figure


def ranking(rows: Sequence[Row], names: Sequence[str], tied: Sequence[bool], score: Score, floors: Floors) -> Figure:
    """Plots the best 20 cells by name with their intervals, the best at the top, significantly worse ones in grey."""
    order = sorted(range(len(rows)), key=lambda i: (score.loss(rows[i]), cost_of(rows[i])))[:20][::-1]
    best = [rows[i] for i in order]
    figure, axes = plt.subplots(figsize=(6.4, 1.3 + 0.24 * len(best)), layout="constrained")
    for kind, colour, label in ((True, COLOURS[0], "not significantly different"), (False, "darkgrey", "worse")):
        at = [height for height, i in enumerate(order) if tied[i] == kind]
        some = [best[height] for height in at]
        style: dict[str, Any] = {"fmt": "o", "color": colour, "markersize": 5, "elinewidth": 1.2, "label": label}
        if some:
            axes.errorbar([row[score.name] for row in some], at, xerr=error_bars(some, score), **style)
    axes.set_yticks(range(len(best)), [names[i] for i in order], fontsize="small")
    _draw_floors(axes.axvline, floors, score)
    if score.share:
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel(score.title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    _legend(figure, [axes])
    return figure


def _limits(panels: Sequence[Axes], rows: Sequence[Row], score: Score) -> None:
    """Limits a logarithmic axis, which would otherwise follow intervals that reach down to zero."""
    if panels[0].get_yscale() == "log":
        least = min([row[score.name] for row in rows] + [y for a in panels for line in a.lines for y in floor_of(line)])
        panels[0].set_ylim(bottom=least / 1.5)


def floor_of(line: Any) -> list[float]:
    """Returns the height of a horizontal line in a list; [] for other lines."""
    heights = list(line.get_ydata())
    return heights[:1] if len(heights) == 2 and heights[0] == heights[1] and heights[0] > 0 else []


def figures_of(
    rows: Sequence[Row], names: Sequence[str], tied: Sequence[bool], score: Score, floors: Floors
) -> dict[str, Figure]:
    """Returns the plots by name, without those that would have one value on their axis. names: of the rows; tied: True
    for rows that are not significantly different from the best."""
    found = {}
    for cost in ("nfe", "seconds"):
        some = [row for row in rows if row.get(cost, 0) > 0]
        if len({row[cost] for row in some}) > 1:
            found[f"{score.name}_against_{cost}"] = against_cost(some, score, floors, cost)
    for x, panel, least in (("steps", "guidance", 2), ("guidance", "steps", 3)):
        some = [row for row in rows if x in row]
        if len({row[x] for row in some}) >= least:
            found[f"{score.name}_against_{x}"] = curves(some, score, floors, x, panel)
    if len(rows) > 1:
        found[f"{score.name}_ranking"] = ranking(rows, names, tied, score, floors)
    return found


def to_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    plt.close(figure)
    return buffer.getvalue()
