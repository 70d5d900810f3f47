"""Plots of a sweep: quality against steps, against guidance, and against its price with the Pareto front."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
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

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # safe for colour-blind eyes
MARKERS = "osD^vP*X"
LINES = ("-", "--", ":", "-.")
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


def line_styles(rows: Sequence[Row], columns: Sequence[str]) -> dict[tuple[Any, ...], LineStyle]:
    """How the rows with each combination of these columns are drawn: colour by the first column that varies, line by
    the others."""
    columns = varying(rows, columns) or [name for name in columns if name in rows[0]][:1]
    series = {tuple(row.get(name) for name in columns): name_of(row, columns) for row in rows}
    hues, rests = (list(dict.fromkeys(part(key) for key in series)) for part in (lambda k: k[:1], lambda k: k[1:]))
    styles = {}
    for key, label in series.items():
        hue, rest = hues.index(key[:1]), rests.index(key[1:])
        line = LINES[(rest + hue // len(COLOURS)) % len(LINES)]
        styles[key] = LineStyle(label, COLOURS[hue % len(COLOURS)], MARKERS[(hue + rest) % len(MARKERS)], line)
    return styles


def series_of(rows: Sequence[Row], columns: Sequence[str]) -> list[tuple[LineStyle, list[Row]]]:
    """The rows by how they are drawn."""
    names = varying(rows, columns) or [name for name in columns if name in rows[0]][:1]
    return [
        (drawn, [row for row in rows if tuple(row.get(name) for name in names) == key])
        for key, drawn in line_styles(rows, columns).items()
    ]


def sparse(values: Sequence[float], log: bool) -> list[float]:
    """Those of the values whose labels do not overlap on an axis that they span."""
    at = [math.log(v) for v in values] if log else list(values)
    least = (max(at) - min(at)) / 9
    kept = [0]
    for place in range(1, len(values)):
        if at[place] - at[kept[-1]] >= least:
            kept.append(place)
    return [values[place] for place in kept]


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
    """Shares in percent; distances that differ by orders of magnitude on a logarithmic scale, where the good ones are
    not one line."""
    values = [row[score.name] for row in rows]
    if score.share:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if max(values) - min(values) > 0.04 else 1))
    elif not score.higher_is_better and min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
        subs = (1.0, 2.0, 5.0) if max(values) < 1000 * min(values) else (1.0,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    for style, (name, scores) in zip((":", "--", "-."), floors.items(), strict=False):
        known = score.known(scores)  # not where there were too few real pictures for this N
        if known and (axes.get_yscale() == "linear" or scores[score.name] > min(values) / 1000):
            axes.axhline(scores[score.name], color="grey", linestyle=style, linewidth=1.2, label=f"{name} pictures")


def reaches(rows: Sequence[Row], score: Score) -> Any:
    """(2, R): how far each interval goes below and above; nothing where it is not known."""
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
    """One for all panels, below them; the figure grows by its height."""
    found = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if not found:
        return
    width = 0.7 + 0.085 * max(len(label) for label in found)
    columns = max(1, min(len(found), 5, int(figure.get_figwidth() / width)))
    figure.set_figheight(figure.get_figheight() + 0.1 + 0.24 * -(-len(found) // columns))
    figure.legend(found.values(), found.keys(), loc="outside lower center", frameon=False, ncols=columns)


def curves(rows: Sequence[Row], score: Score, floors: Floors, x: str = "steps", panel: str = "guidance") -> Figure:
    """Quality against steps or guidance: a panel for each value of the other, a line for each series, its 95 %
    intervals beside their true place so that all are seen."""
    values = sorted({row[x] for row in rows})
    kinds = sorted({row[panel] for row in rows if panel in row}) or [None]
    figure, panels = _panels(len(kinds), 3, 2.7, 3.1)
    series = series_of(rows, SERIES)
    for axes, kind in zip(panels, kinds, strict=True):
        for place, (drawn, some) in enumerate(series):
            line = sorted((row for row in some if row.get(panel) == kind), key=lambda row: row[x])
            aside = (place - (len(series) - 1) / 2) * min(0.06, 0.4 / len(series))
            at = [row[x] * 2**aside if x == "steps" else row[x] + aside * (values[-1] - values[0]) / 4 for row in line]
            style: dict[str, Any] = {"color": drawn.colour, "marker": drawn.marker, "linestyle": drawn.line}
            heights, reach = [row[score.name] for row in line], reaches(line, score)
            style |= {"markersize": 5, "linewidth": 1.3, "alpha": 0.85, "label": drawn.label or None}
            style["elinewidth"] = 0.9 if len(series) <= 6 else 0.4  # many of them would hide the lines
            axes.errorbar(at, heights, reach, **style)
        _x_axis(axes, x, values)
        _y_axis(axes, rows, score, floors)
        if kind is not None:
            axes.set_title(f"guidance {kind:g}" if panel == "guidance" else f"{kind} steps", fontsize="medium")
    _limits(panels, rows, score)
    figure.supylabel(score.title, fontsize="medium")
    _legend(figure, panels)
    return figure


def against_cost(rows: Sequence[Row], score: Score, floors: Floors, cost: str = "nfe") -> Figure:
    """Every cell as a point, its sampler by colour and its guidance by marker, a panel for each model, weights or grid;
    these by colour where there is one sampler. In all panels the line is the Pareto front of all cells; its own ones
    are ringed, with their steps and interval."""
    homes = varying(rows, [name for name in SERIES if name != "sampler"])
    paints = varying(rows, ["sampler"]) or ["guidance"]
    if paints == ["guidance"] and len(homes) == 1 and len({row.get(homes[0]) for row in rows}) <= len(COLOURS):
        paints, homes = homes, []
    marks = {scale: MARKERS[i % len(MARKERS)] for i, scale in enumerate(sorted({r.get("guidance", 0) for r in rows}))}
    kinds = list(dict.fromkeys(name_of(row, homes) for row in rows))
    figure, panels = _panels(len(kinds), 2, 3.6 if len(kinds) > 1 else 5.0, 3.8, sharex=True)
    front = pareto_front(rows, cost, score)
    for axes, kind in zip(panels, kinds, strict=True):
        for drawn, some in series_of(rows, paints):
            for scale, marker in marks.items():
                mine = [r for r in some if r.get("guidance", 0) == scale and name_of(r, homes) == kind]
                style: dict[str, Any] = {
                    "color": drawn.colour,
                    "marker": marker,
                    "markersize": 6.5,
                    "linestyle": "none",
                }
                axes.plot([r[cost] for r in mine], [r[score.name] for r in mine], alpha=0.75, mew=0, **style)
            if varying(rows, paints):
                axes.plot([], [], "o", color=drawn.colour, markersize=6.5, label=drawn.label)
        for scale, marker in marks.items() if len(marks) > 1 and paints != ["guidance"] else ():
            axes.plot([], [], marker, color="grey", markersize=6.5, label=f"guidance {scale:g}")
        own = [row for row in front if name_of(row, homes) == kind]
        at = [row[cost] for row in own], [row[score.name] for row in own]
        steps = [row[cost] for row in front], [row[score.name] for row in front]
        axes.plot(*steps, color="black", linewidth=0.9, drawstyle="steps-post", alpha=0.6)
        axes.errorbar(*at, reaches(own, score), fmt="none", ecolor="black", elinewidth=0.9, alpha=0.6)
        axes.plot(*at, "o", color="black", markersize=12, markerfacecolor="none", label="Pareto front")
        for row in own:
            place, aside = (row[cost], row[score.name]), (7, 7 if score.higher_is_better else -14)
            axes.annotate(number_of_steps(row), place, xytext=aside, textcoords="offset points")
        axes.margins(y=0.09)
        _x_axis(axes, cost, [row[cost] for row in rows])
        _y_axis(axes, rows, score, floors)
        axes.set_title(kind, fontsize="medium")
    _limits(panels, rows, score)
    figure.supylabel(score.title, fontsize="medium")
    _legend(figure, panels)
    return figure


def number_of_steps(row: Row) -> str:
    return f"{row['steps']:g}" if "steps" in row else ""


def ranking(rows: Sequence[Row], names: Sequence[str], tied: Sequence[bool], score: Score, floors: Floors) -> Figure:
    """The best 20 cells by name, the best on top, each with its interval, in grey those that are significantly
    worse."""
    order = sorted(range(len(rows)), key=lambda i: (score.loss(rows[i]), cost_of(rows[i])))[:20][::-1]
    best = [rows[i] for i in order]
    figure, axes = plt.subplots(figsize=(6.4, 1.3 + 0.24 * len(best)), layout="constrained")
    for kind, colour, label in ((True, COLOURS[0], "not significantly different"), (False, "darkgrey", "worse")):
        at = [place for place, i in enumerate(order) if tied[i] == kind]
        some = [best[place] for place in at]
        style: dict[str, Any] = {"fmt": "o", "color": colour, "markersize": 5, "elinewidth": 1.2, "label": label}
        if some:
            axes.errorbar([row[score.name] for row in some], at, xerr=reaches(some, score), **style)
    axes.set_yticks(range(len(best)), [names[i] for i in order], fontsize="small")
    for line, (name, scores) in zip((":", "--", "-."), floors.items(), strict=False):
        if score.known(scores):
            axes.axvline(scores[score.name], color="grey", linestyle=line, linewidth=1.2, label=f"{name} pictures")
    if score.share:
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel(score.title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    _legend(figure, [axes])
    return figure


def _limits(panels: Sequence[Axes], rows: Sequence[Row], score: Score) -> None:
    """A logarithmic axis must not follow intervals that go down to zero."""
    if panels[0].get_yscale() == "log":
        least = min([row[score.name] for row in rows] + [y for a in panels for line in a.lines for y in floor_of(line)])
        panels[0].set_ylim(bottom=least / 1.5)


def floor_of(line: Any) -> list[float]:
    """The height of a line that is drawn all across."""
    heights = list(line.get_ydata())
    return heights[:1] if len(heights) == 2 and heights[0] == heights[1] and heights[0] > 0 else []


def figures_of(
    rows: Sequence[Row], names: Sequence[str], tied: Sequence[bool], score: Score, floors: Floors
) -> dict[str, Figure]:
    """All that these cells have something to show in, by name. names: theirs; tied: whether each is not significantly
    different from the best."""
    found = {}
    for cost in ("nfe", "seconds"):
        priced = [row for row in rows if row.get(cost, 0) > 0]
        if len({row[cost] for row in priced}) > 1:
            found[f"{score.name}_against_{cost}"] = against_cost(priced, score, floors, cost)
    for x, panel, least in (("steps", "guidance", 2), ("guidance", "steps", 3)):
        placed = [row for row in rows if x in row]
        if len({row[x] for row in placed}) >= least:
            found[f"{score.name}_against_{x}"] = curves(placed, score, floors, x, panel)
    if len(rows) > 1:
        found[f"{score.name}_ranking"] = ranking(rows, names, tied, score, floors)
    return found


def to_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    plt.close(figure)
    return buffer.getvalue()
