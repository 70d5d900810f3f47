"""Plots of a sweep: quality against steps, against guidance, and against cost with the Pareto front."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from dit.evaluation.results import SERIES, Score, calls_column, cost_of, interval, pareto_front, varying
from dit.evaluation.sampling_cost import THOUSAND, price_column, unit_of
from dit.evaluation.sweep import Row, name_of

# Distinct for colour-blind readers (Okabe & Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*X"
LINES = ("-", "--", ":", "-.")
FLOOR_LINES = (":", "--", "-.")
AXES = {
    "steps": "steps",
    "guidance": "guidance scale",
    "nfe": "network evaluations for each picture (NFE)",
    "effective_nfe": "effective network evaluations for each picture (NFE x share of blocks run)",
}
STYLE: dict[str, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.constrained_layout.use": True,
    "figure.labelsize": "medium",
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 5,
}
Floors = Mapping[str, Mapping[str, Any]]


def series_of(rows: Sequence[Row], columns: Sequence[str]) -> list[tuple[dict[str, Any], list[Row]]]:
    """Returns the rows of each combination of these columns, and their style as arguments of matplotlib: the colour
    stands for the first column that varies, the line and the marker for the others."""
    columns = varying(rows, columns) or [name for name in columns if name in rows[0]][:1]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name) for name in columns), []).append(row)
    colours, others = (list(dict.fromkeys(key[part] for key in groups)) for part in (slice(1), slice(1, None)))
    series = []
    for key, group in groups.items():
        colour, other = colours.index(key[:1]), others.index(key[1:])
        style = {
            "label": name_of(group[0], columns) or None,
            "color": COLOURS[colour % len(COLOURS)],
            "linestyle": LINES[(other + colour // len(COLOURS)) % len(LINES)],
            "marker": MARKERS[(colour + other) % len(MARKERS)],
        }
        series.append((style, group))
    return series


def error_bars(rows: Sequence[Row], score: Score) -> np.ndarray:
    """Returns (2, R): the distances from each score to the lower and upper ends of its interval; NaN if it is
    unknown."""
    low, high = np.reshape([interval(row, score.name) or (math.nan, math.nan) for row in rows], (-1, 2)).T
    values = np.array([row[score.name] for row in rows])
    return np.maximum([values - low, high - values], 0)


def curves(rows: Sequence[Row], score: Score, floors: Floors, x: str = "steps", panel: str = "guidance") -> Figure:
    """Plots quality against steps or guidance: a panel for each value of the other, a line for each series. Points are
    shifted sideways so that their 95 % intervals do not cover each other."""
    values = sorted({row[x] for row in rows})
    kinds = sorted({row[panel] for row in rows if panel in row}) or [None]
    figure, panels = _panels(len(kinds), 3, 2.7, 3.1)
    series = series_of(rows, SERIES)
    for axes, kind in zip(panels, kinds, strict=True):
        for i, (style, group) in enumerate(series):
            line = sorted((row for row in group if row.get(panel) == kind), key=lambda row: row[x])
            shift = (i - (len(series) - 1) / 2) * min(0.06, 0.4 / len(series))
            at = [row[x] * 2**shift if x == "steps" else row[x] + shift * (values[-1] - values[0]) / 4 for row in line]
            width = 0.9 if len(series) <= 6 else 0.4  # many thick bars would hide the lines
            heights = [row[score.name] for row in line]
            axes.errorbar(at, heights, error_bars(line, score), elinewidth=width, alpha=0.85, **style)
        if kind is not None:
            axes.set_title(f"guidance {kind:g}" if panel == "guidance" else f"{kind} steps")
    _finish(figure, panels, rows, x, score, floors)
    return figure


def against_cost(rows: Sequence[Row], score: Score, floors: Floors, cost: str = "nfe") -> Figure:
    """Plots every cell as a point: the sampler by colour, guidance by marker, and a panel for each model, weights or
    grid, or these by colour if there is one sampler. The line in all panels is the Pareto front of all cells; cells on
    the front have a ring, their steps and their interval. Above the seconds of a thousand pictures is their price, if
    it is known."""
    panelled = varying(rows, [name for name in SERIES if name != "sampler"])
    coloured = varying(rows, ["sampler"]) or ["guidance"]
    if coloured == ["guidance"] and len(panelled) == 1 and len({row.get(panelled[0]) for row in rows}) <= len(COLOURS):
        coloured, panelled = panelled, []
    scales = sorted({row.get("guidance", 0) for row in rows})
    markers = {scale: MARKERS[i % len(MARKERS)] for i, scale in enumerate(scales)}
    kinds = list(dict.fromkeys(name_of(row, panelled) for row in rows))
    figure, panels = _panels(len(kinds), 2, 3.6 if len(kinds) > 1 else 5.0, 3.8)
    front = pareto_front(rows, cost, score)
    for axes, kind in zip(panels, kinds, strict=True):
        for style, group in series_of(rows, coloured):
            for row in group:
                if name_of(row, panelled) == kind:
                    marker = markers[row.get("guidance", 0)]
                    axes.plot(row[cost], row[score.name], marker, color=style["color"], ms=6.5, alpha=0.75, mew=0)
            if varying(rows, coloured):
                axes.plot([], [], "o", color=style["color"], ms=6.5, label=style["label"])
        for scale, marker in markers.items() if len(markers) > 1 and coloured != ["guidance"] else ():
            axes.plot([], [], marker, color="grey", ms=6.5, label=f"guidance {scale:g}")
        stairs = [row[cost] for row in front], [row[score.name] for row in front]
        axes.plot(*stairs, color="black", linewidth=0.9, drawstyle="steps-post", alpha=0.6)
        _draw_front(axes, [row for row in front if name_of(row, panelled) == kind], cost, score)
        axes.set_title(kind)
    _finish(figure, panels, rows, cost, score, floors)
    if cost == f"seconds{THOUSAND}" and (priced := price_column(rows[0])):
        for axes in panels:
            _draw_prices(axes, rows, priced)
    return figure


def _draw_prices(axes: Axes, rows: Sequence[Row], column: str) -> None:
    """Adds an axis of prices above that of the seconds of a thousand pictures."""
    rate = rows[0][column] / rows[0][f"seconds{THOUSAND}"]
    if rate:
        top = axes.secondary_xaxis("top", functions=(lambda seconds: seconds * rate, lambda price: price / rate))
        _label_decades(top.xaxis, [row[column] for row in rows])
        top.set_xlabel(f"{unit_of(column)} for 1000 pictures")


def _draw_front(axes: Axes, front: Sequence[Row], cost: str, score: Score) -> None:
    """Draws a ring, the interval and the number of steps at each of these cells."""
    at = [row[cost] for row in front], [row[score.name] for row in front]
    axes.errorbar(*at, error_bars(front, score), fmt="none", ecolor="black", elinewidth=0.9, alpha=0.6)
    axes.plot(*at, "o", color="black", ms=12, fillstyle="none", label="Pareto front")
    for row in front:
        text, offset = f"{row.get('steps', '')}", (7, 7 if score.higher_is_better else -14)
        axes.annotate(text, (row[cost], row[score.name]), xytext=offset, textcoords="offset points")


def ranking(rows: Sequence[Row], names: Sequence[str], tied: Sequence[bool], score: Score, floors: Floors) -> Figure:
    """Plots the best 20 cells by name with their intervals, the best at the top, significantly worse ones in grey."""
    order = sorted(range(len(rows)), key=lambda i: (score.loss(rows[i]), cost_of(rows[i])))[:20][::-1]
    figure, axes = plt.subplots(figsize=(6.4, 1.3 + 0.24 * len(order)))
    for kind, colour, label in ((True, COLOURS[0], "not significantly different"), (False, "darkgrey", "worse")):
        if at := [height for height, i in enumerate(order) if tied[i] == kind]:
            group = [rows[order[height]] for height in at]
            values, bars = [row[score.name] for row in group], error_bars(group, score)
            axes.errorbar(values, at, xerr=bars, fmt="o", color=colour, elinewidth=1.2, label=label)
    axes.set_yticks(range(len(order)), [names[i] for i in order], fontsize="small")
    _draw_floors(axes.axvline, floors, score)
    if score.share:
        label_percent(axes.xaxis)
    axes.set_xlabel(score.title)
    legend(figure, [axes])
    return figure


def _panels(count: int, most: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Returns a figure with `count` panels of this size in inches, at most `most` in a row, with common axes."""
    columns, lines = min(count, most), -(-count // most)
    size = (max(5.4, 1.0 + width * columns), height * lines)
    figure, grid = plt.subplots(lines, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[count:]:
        axes.remove()
    return figure, list(grid.flat[:count])


def _finish(figure: Figure, panels: Sequence[Axes], rows: Sequence[Row], x: str, score: Score, floors: Floors) -> None:
    """Scales and labels the axes, which all panels share; adds the floors and the legend."""
    values, costs = [row[score.name] for row in rows], sorted({row[x] for row in rows})
    if x != "guidance":
        panels[0].set_xscale("log", base=10 if x.endswith(THOUSAND) else 2)
        _label_decades(panels[0].xaxis, costs)
    if x in ("steps", "nfe", "effective_nfe"):
        powers = [2.0**k for k in range(20) if costs[0] <= 2**k <= costs[-1]] if x != "steps" else []
        panels[0].xaxis.set_major_locator(FixedLocator(powers or costs, nbins=8))
    log = not score.share and not score.higher_is_better and min(values) > 0 and max(values) > 10 * min(values)
    if log:
        panels[0].set_yscale("log")
        _label_decades(panels[0].yaxis, values)
    for axes in panels:
        shown = _draw_floors(axes.axhline, floors, score, min(values) / 1000 if log else -math.inf)
        axes.margins(y=0.09)
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(AXES.get(x) or f"{unit_of(x)} for 1000 pictures")
    if log:  # intervals that reach down to zero would stretch the axis
        panels[0].set_ylim(bottom=min([*values, *shown]) / 1.5)
    if score.share:
        label_percent(panels[0].yaxis)
    figure.supylabel(score.title)
    legend(figure, panels)


def _label_decades(axis: Axis, values: Sequence[float]) -> None:
    """Labels parts of each decade of a logarithmic axis: the fewer, the more decades there are."""
    ratio = max(values) / min(values)
    subs = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if ratio < 10 else (1.0, 2.0, 5.0) if ratio < 300 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def label_percent(axis: Axis) -> None:
    low, high = axis.get_view_interval()
    axis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(PercentFormatter(1.0, decimals=0 if high - low > 0.05 else None))


def _draw_floors(draw_line: Callable[..., Any], floors: Floors, score: Score, least: float = -math.inf) -> list[float]:
    """Draws a line at each floor above `least` and returns their values. A floor lacks the score if there were too few
    real pictures for N."""
    shown = []
    for style, (name, scores) in zip(FLOOR_LINES, floors.items(), strict=False):
        if score.known(scores) and scores[score.name] > least:
            shown.append(scores[score.name])
            draw_line(shown[-1], color="grey", linestyle=style, linewidth=1.2, label=f"{name} pictures")
    return shown


def legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Adds one legend for all panels below them, and its height to the figure."""
    found = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if found:
        width = 0.7 + 0.085 * max(len(label) for label in found)  # of an entry, in inches
        columns = max(1, min(len(found), 5, int(figure.get_figwidth() / width)))
        figure.set_figheight(figure.get_figheight() + 0.1 + 0.24 * -(-len(found) // columns))
        figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns)


def figures_of(
    rows: Sequence[Row], names: Sequence[str], tied: Sequence[bool], score: Score, floors: Floors
) -> dict[str, Figure]:
    """Returns the plots by name, without those that would have one value on their axis. names: of the rows; tied: True
    for rows that are not significantly different from the best."""
    found = {}
    with plt.style.context(STYLE):
        energy = dict.fromkeys(name for row in rows for name in row if name.startswith("Wh_"))
        for cost in (calls_column(rows), f"seconds{THOUSAND}", *energy):
            some = [row for row in rows if row.get(cost, 0) > 0]
            if len({row[cost] for row in some}) > 1:
                found[f"{score.name}_against_{cost.removesuffix(THOUSAND)}"] = against_cost(some, score, floors, cost)
        for x, panel, least in (("steps", "guidance", 2), ("guidance", "steps", 3)):
            some = [row for row in rows if x in row]
            if len({row[x] for row in some}) >= least:
                found[f"{score.name}_against_{x}"] = curves(some, score, floors, x, panel)
        if len(rows) > 1:
            found[f"{score.name}_ranking"] = ranking(rows, names, tied, score, floors)
    return found


def to_files(figure: Figure) -> dict[str, bytes]:
    """Returns a plot as PNG, and as PDF and SVG for papers, by the names of the formats. The same plot always gives the
    same files. The figure is closed."""
    undated = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
    files = {}
    with plt.rc_context({"svg.hashsalt": "dit"}):
        for kind, metadata in undated.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
            files[kind] = buffer.getvalue()
    plt.close(figure)
    return files
