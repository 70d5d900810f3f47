"""The plot of a fine-tuning: subject fidelity against prompt fidelity, and the copy rate and the drift beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dit.evaluation.plots import LINES, MARKERS, STYLE, error_bars, label_percent, legend
from dit.evaluation.results import Score
from dit.evaluation.trade_off import Point, TradeOff

BASE_COLOUR = "#7f7f7f"
MOST_STEPS = 8  # in the legend


def trade_off_plot(found: TradeOff) -> Figure:
    """Plots every cell: the colour stands for the checkpoint, the marker for the setting. A ring marks the last
    checkpoint before copying rises, if it does."""
    steps = sorted({point.step for point in found.points if not point.is_base})
    ramp = plt.get_cmap("viridis")
    colours: dict[Any, Any] = {step: ramp(0.92 * i / max(len(steps) - 1, 1)) for i, step in enumerate(steps)}
    settings = list(dict.fromkeys(point.setting for point in found.points))
    roles = ["copies", *(role for role in ("drift",) if role in found.columns)]
    with plt.style.context(STYLE):
        figure = plt.figure(figsize=(10.5, 5.2))
        grid = figure.add_gridspec(len(roles), 2, width_ratios=(1.35, 1))
        main = figure.add_subplot(grid[:, 0])
        draw_trade_off(main, found, settings, colours)
        beside: list[Axes] = []
        for i, role in enumerate(roles):
            axes = figure.add_subplot(grid[i, 1], sharex=beside[0] if beside else None)
            draw_against_steps(axes, found, found.score(role), settings, colours)
            beside.append(axes)
        beside[-1].set_xlabel("step")
        legend(figure, [main])
    return figure


def style_of(point: Point, settings: Sequence[str], colours: dict[Any, Any]) -> dict[str, Any]:
    marker = MARKERS[settings.index(point.setting) % len(MARKERS)]
    if point.is_base:
        return {"color": BASE_COLOUR, "marker": marker, "linestyle": "none", "zorder": 4}
    return {"color": colours[point.step], "marker": marker, "linestyle": "none"}


def lines_of(found: TradeOff, settings: Sequence[str]) -> list[tuple[str, list[Point]]]:
    """Returns the line style and the points of each run and setting, in the order of the steps; the base is the first
    point of the setting that samples alike."""
    lines = []
    for run in found.runs:
        for i, setting in enumerate(settings):
            own = [p for p in found.points if not p.is_base and (p.run, p.setting) == (run, setting)]
            base = [p for p in found.points if p.is_base and own and found.samples_like(p, own[0])]
            lines.append((LINES[i % len(LINES)], [*base, *own]))
    return lines


def draw_trade_off(axes: Axes, found: TradeOff, settings: Sequence[str], colours: dict[Any, Any]) -> None:
    x, y = found.score("prompt"), found.score("subject")
    for line, points in lines_of(found, settings):
        axes.plot([p.row[x.name] for p in points], [p.row[y.name] for p in points], line, color="lightgrey", zorder=1)
    for point in found.points:
        style = style_of(point, settings, colours) | {"ms": 8, "elinewidth": 0.7, "alpha": 0.9}
        bars = error_bars([point.row], y), error_bars([point.row], x)
        axes.errorbar(point.row[x.name], point.row[y.name], *bars, **style)
    lasts = [(run, last.step) for run in found.runs if found.risen(run) and (last := found.last_good(run)) is not None]
    ringed = [p for p in found.points if not p.is_base and (p.run, p.step) in lasts]
    if ringed:
        at = [p.row[x.name] for p in ringed], [p.row[y.name] for p in ringed]
        axes.plot(*at, "o", color="black", ms=15, fillstyle="none", label="last before copying rises")
    ceiling = found.points[0].row.get(f"{y.name}_of_subject")
    if ceiling is not None:
        axes.axhline(ceiling, color="grey", linestyle=":", linewidth=1.2, label="the subject's pictures")
    if any(point.is_base for point in found.points):
        axes.plot([], [], "s", color=BASE_COLOUR, label="base")
    for step in [*colours][:: -(-len(colours) // MOST_STEPS)]:
        axes.plot([], [], "s", color=colours[step], label=f"step {step}")
    for setting in settings if len(settings) > 1 else ():
        marker = MARKERS[settings.index(setting) % len(MARKERS)]
        axes.plot([], [], marker, color="dimgrey", fillstyle="none", label=setting)
    axes.set_xlabel(f"prompt fidelity: {x.title}")
    axes.set_ylabel(f"subject fidelity: {y.title}")
    axes.margins(0.1)
    if x.share:
        label_percent(axes.xaxis)


def draw_against_steps(
    axes: Axes, found: TradeOff, score: Score, settings: Sequence[str], colours: dict[Any, Any]
) -> None:
    for line, points in lines_of(found, settings):
        axes.plot([p.step for p in points], [p.row[score.name] for p in points], line, color="lightgrey", zorder=1)
    for point in found.points:
        style = style_of(point, settings, colours)
        axes.errorbar(point.step, point.row[score.name], error_bars([point.row], score), **style, elinewidth=0.9)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_title(score.title, fontsize="small")
    axes.set_ylim(bottom=0)
    if score.share:
        axes.set_ylim(top=max(0.1, axes.get_ylim()[1]))
        label_percent(axes.yaxis)
