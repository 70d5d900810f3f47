import io
import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from dit.evaluation.plots import COLOURS, against_cost, curves, figures_of, ranking, series_of, to_files
from dit.evaluation.results import SERIES, Score, pareto_front

ACCURACY, DISTANCE = Score("accuracy", True, share=True), Score("distance", False)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def rows_of(samplers=("euler", "heun"), steps=(2, 8), scales=(1.0, 2.0), **others):
    """One for each combination, a hundred times nearer after the last steps than after the first."""
    rows = []
    for values in itertools.product(samplers, steps, scales, *others.values()):
        sampler, n, scale = values[:3]
        share = 1 - 1 / (n + scale)
        rows.append(
            dict(zip(others, values[3:], strict=True))
            | {"sampler": sampler, "steps": n, "guidance": scale, "nfe": float(n), "seconds_per_thousand": 10.0 * n}
            | {"accuracy": share, "distance": 1000.0 / n**3}
            | {
                "intervals": {"accuracy": [share - 0.1, share + 0.05], "distance": [-1.0, 2000.0 / n**3]},
                "failed": None,
            }
        )
    return rows


def bars(axes):
    """(low, high) of every interval that is drawn."""
    containers = [c for c in axes.containers if c.lines[2]]
    return {tuple(s[:, 1].round(6)) for c in containers for part in c.lines[2] for s in part.get_segments() if len(s)}


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


@pytest.mark.parametrize(("higher", "front"), [(True, [(1, 3), (4, 5)]), (False, [(1, 3), (2, 2), (8, 1)])])
def test_the_front_is_what_nothing_cheaper_beats(higher, front):
    rows = [{"nfe": nfe, "s": s} for nfe, s in [(8, 1), (2, 2), (1, 3), (4, 5), (8, 4), (2, 3), (1, 3)]]
    assert [(row["nfe"], row["s"]) for row in pareto_front(rows, "nfe", Score("s", higher))] == front


@pytest.mark.parametrize("x", ["steps", "guidance"])
def test_curves_draw_every_cell_and_its_interval(x):
    rows = rows_of(steps=(2, 4, 8), scales=(1.0, 2.0, 4.0))
    panel = "guidance" if x == "steps" else "steps"
    figure = curves(rows, ACCURACY, {}, x, panel)
    assert len(figure.axes) == 3
    drawn = set()
    for axes in figure.axes:
        for container in axes.containers:
            drawn |= {round(float(y), 6) for y in container.lines[0].get_ydata()}
    assert drawn == {round(row["accuracy"], 6) for row in rows}
    wanted = {tuple(np.round(row["intervals"]["accuracy"], 6)) for row in rows}
    assert set().union(*(bars(axes) for axes in figure.axes)) == wanted


def test_curves_without_intervals_have_no_bars():
    rows = [row | {"intervals": {"accuracy": [-float("inf"), float("inf")]}} for row in rows_of()]
    figure = curves(rows, ACCURACY, {})
    assert not [b for axes in figure.axes for b in bars(axes) if np.isfinite(b).all()]
    files = to_files(figure)
    assert Image.open(io.BytesIO(files["png"])).size
    assert files["pdf"].startswith(b"%PDF")
    assert b"<svg" in files["svg"]


def test_the_front_is_ringed_in_the_panel_of_its_own_cells():
    rows = rows_of(weights=("ema", "raw"))
    for row in rows:
        row["accuracy"] -= 0.1 * (row["weights"] == "raw")
    figure = against_cost(rows, ACCURACY, {})
    rings = {
        axes.get_title(): [len(line.get_xdata()) for line in axes.lines if line.get_label() == "Pareto front"]
        for axes in figure.axes
    }
    assert rings == {"ema": [2], "raw": [0]}
    assert {text.get_text() for text in figure.axes[0].texts} == {"2", "8"}


def test_several_checkpoints_of_one_sampler_share_a_panel():
    figure = against_cost(rows_of(samplers=("euler",), checkpoint=("a", "b")), ACCURACY, {})
    assert len(figure.axes) == 1
    assert {"a", "b"} <= {line.get_label() for line in figure.axes[0].lines}


def test_axes_are_percent_for_shares_and_logarithmic_for_distances_that_span_decades():
    rows = rows_of()
    figure = against_cost(rows, ACCURACY, {})
    figure.canvas.draw()
    assert all("%" in label.get_text() for label in figure.axes[0].get_yticklabels())
    assert figure.axes[0].get_yscale() == "linear"
    figure = curves(rows, DISTANCE, {"real": {"distance": 0.5}})
    assert figure.axes[0].get_yscale() == "log"
    assert figure.axes[0].get_ylim()[0] > 0.1  # whatever the intervals say


@pytest.mark.parametrize("width", [0.6, 0.14, 0.03, 0.004])
def test_percent_labels_are_exact(width):
    rows = [row | {"accuracy": 0.3 + i * width, "intervals": {}} for i, row in enumerate(rows_of()[:2])]
    for axis in (
        curves(rows, ACCURACY, {}).axes[0].yaxis,
        ranking(rows, "ab", [True, False], ACCURACY, {}).axes[0].xaxis,
    ):
        ticks, texts = axis.get_majorticklocs(), labels(axis)
        assert len(ticks) >= 4
        assert [float(text.removesuffix("%")) for text in texts] == pytest.approx(list(100 * ticks), abs=1e-9)


def test_floors_are_lines_where_they_have_this_very_column():
    floors = {"real": {"accuracy": 0.99}, "autoencoder": {"accuracy_of_40": 0.98}}
    for figure in (curves(rows_of(), ACCURACY, floors), against_cost(rows_of(), ACCURACY, floors)):
        labels = {line.get_label() for line in figure.axes[0].lines}
        assert "real pictures" in labels
        assert "autoencoder pictures" not in labels


def test_no_two_series_have_one_style():
    rows = rows_of(samplers=[f"sampler {i}" for i in range(9)], weights=("ema", "raw"), grid=("karras", "run"))
    styles = [style for style, _ in series_of(rows, SERIES)]
    assert len(styles) == 36
    assert len({(style["color"], style["marker"], style["linestyle"]) for style in styles}) == 36
    assert {style["color"] for style in styles} == set(COLOURS)
    assert [style["label"] for style, _ in series_of(rows[:1], SERIES)] == ["sampler 0"]


def test_the_axis_of_steps_labels_the_steps_and_at_most_nine_of_them():
    axes = curves(rows_of(steps=(3, 5, 10)), ACCURACY, {}).axes[0]
    assert labels(axes.xaxis) == ["3", "5", "10"]
    many = labels(curves(rows_of(steps=range(1, 101)), ACCURACY, {}).axes[0].xaxis)
    assert many[0] == "1"
    assert 5 <= len(many) <= 9


def test_axes_of_cost_label_powers_of_two_or_parts_of_decades():
    rows = rows_of(steps=(2, 3, 8, 20))
    assert labels(against_cost(rows, ACCURACY, {}, "nfe").axes[0].xaxis) == ["2", "4", "8", "16"]
    seconds = against_cost(rows, ACCURACY, {}, "seconds_per_thousand").axes[0]
    assert {"20", "50", "100", "200"} <= set(labels(seconds.xaxis))
    near = labels(against_cost(rows_of(steps=(10, 15)), ACCURACY, {}, "seconds_per_thousand").axes[0].xaxis)
    assert len(near) > 2, "a part of a decade is labelled too"


def test_the_price_of_a_thousand_pictures_is_above_their_seconds():
    rows = [row | {"EUR_per_thousand": row["seconds_per_thousand"] / 100} for row in rows_of(steps=(2, 3, 8, 20))]
    axes = against_cost(rows, ACCURACY, {}, "seconds_per_thousand").axes[0]
    [top] = axes.child_axes
    axes.figure.canvas.draw()
    assert axes.get_xlabel() == "seconds for 1000 pictures"
    assert top.get_xlabel() == "EUR for 1000 pictures"
    assert {"0.2", "0.5", "1", "2"} <= set(labels(top.xaxis))
    assert np.array(top.get_xlim()) == pytest.approx(np.array(axes.get_xlim()) / 100)
    assert not against_cost(rows, ACCURACY, {}, "nfe").axes[0].child_axes


def test_only_plots_with_something_to_show_are_drawn():
    def kinds(rows):
        found = figures_of(rows, ["cell"] * len(rows), [True] * len(rows), ACCURACY, {})
        return {name.removeprefix("accuracy_") for name in found}

    assert kinds(rows_of()) == {"against_nfe", "against_seconds", "against_steps", "ranking"}
    assert kinds(rows_of(steps=(2,), scales=(1.0, 2.0, 3.0))) == {"against_guidance", "ranking"}
    assert kinds(rows_of(steps=(2,), scales=(1.0,))) == {"ranking"}
    assert kinds(rows_of()[:1]) == set()
    model = [{k: v for k, v in row.items() if k != "sampler"} for row in rows_of(samplers=("euler",))]
    assert "against_steps" in kinds(model)
    assert kinds([{"images": name, "nfe": 0.0, "seconds": 0.0, "accuracy": 0.5} for name in "ab"]) == {"ranking"}
    measured = [row | {"Wh_rapl_per_thousand": row["nfe"]} for row in rows_of()]
    assert kinds(measured) - kinds(rows_of()) == {"against_Wh_rapl"}


def test_the_ranking_has_the_best_on_top_and_those_that_are_worse_apart():
    rows = rows_of(steps=(2, 4, 8))
    names = [f"{row['sampler']} {row['steps']} {row['guidance']}" for row in rows]
    axes = ranking(rows, names, [row["steps"] == 8 for row in rows], ACCURACY, {}).axes[0]
    assert axes.get_yticklabels()[-1].get_text() == "euler 8 2.0"
    tied, worse = (set(container.lines[0].get_ydata()) for container in axes.containers)
    assert tied == {8, 9, 10, 11}
    assert worse == set(range(8))
