"""The results of a sweep as files: tables, plots, picture grids, and one HTML page that holds them all."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from dit.evaluation.plots import Ceilings, Score, against_cost, against_steps, pareto_front, to_png
from dit.evaluation.sweep import Cell, Row, Sweep
from dit.files import write_atomic
from dit.pictures import captioned_grid, png

PRICE = ("sampler", "steps", "guidance", "nfe", "images_per_second")
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 68rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
.scroll { overflow-x: auto; } .grids { display: flex; flex-wrap: wrap; column-gap: 1.5rem; }
.grids section { min-width: 0; } img { max-width: max(100%, 44rem); height: auto; display: block; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e4e4e4; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #888; vertical-align: bottom; }
td.best { font-weight: 700; background: #e9f5ec; } .note { color: #555; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .85rem; }
"""


@dataclass(frozen=True)
class Results:
    """What a report shows besides the rows: plots and grids are PNG files by name."""

    scores: Sequence[Score]
    ceilings: Ceilings
    plots: Mapping[str, bytes]
    grids: Mapping[str, bytes]


def picture_grids(sweep: Sweep, cells: Sequence[Cell]) -> dict[str, Image.Image]:
    """For each shown prompt, a grid of one row for each sampler and guidance scale, and one column for each number of
    steps: everything differs but the noise."""
    steps = sorted({cell.steps for cell in cells})
    kinds = list(dict.fromkeys((cell.sampler, cell.guidance) for cell in cells))
    strips = {(cell.sampler, cell.guidance, cell.steps): sweep.strip(cell) for cell in cells}
    names = [f"{sampler}, guidance {scale:g}" for sampler, scale in kinds]
    header = [f"{n} step" + "s" * (n > 1) for n in steps]
    grids = {}
    for place in range(min(sweep.protocol.shown, len(sweep.protocol.prompts))):
        images = torch.stack([strips[(*kind, n)][place] for kind in kinds for n in steps])
        grids[f"prompt_{place}"] = captioned_grid(images, names, len(steps), side=64, header=header)
    return grids


def table_html(rows: Sequence[Row], columns: Sequence[str], scores: Sequence[Score] = ()) -> str:
    """Some columns of the rows, the best of each score marked."""
    best = {score.name: min(rows, key=score.loss)[score.name] for score in scores}

    def cell(row: Row, name: str) -> str:
        value = row[name]
        text = f"{value:.4g}" if isinstance(value, float) else html.escape(str(value))
        return f"<td class=best>{text}</td>" if name in best and value == best[name] else f"<td>{text}</td>"

    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in columns)
    body = "".join("<tr>" + "".join(cell(row, name) for name in columns) + "</tr>" for row in rows)
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def picture_html(title: str, data: bytes) -> str:
    """A picture under its title, in a box that scrolls where the screen is narrow."""
    source = base64.b64encode(data).decode()
    return (
        f'<section><h2>{html.escape(title)}</h2><div class=scroll><img alt="{html.escape(title)}" '
        f'src="data:image/png;base64,{source}"></div></section>'
    )


def page(sweep: Sweep, rows: Sequence[Row], results: Results) -> str:
    """The whole report as one file of HTML."""
    card, scores = sweep.protocol.card, results.scores
    columns = [name for name in rows[0] if name not in ("n", "seed")]  # the same in every row
    brief = [name for name in columns if name in PRICE or name in {score.name for score in scores}]
    ceilings = [{"pictures": name, **values} for name, values in results.ceilings.items()]
    prompts = [f"“{sweep.protocol.prompts[place]}”" for place in range(len(results.grids))]
    parts = [
        f"<h1>Sweep of {html.escape(str(card['checkpoint']))}</h1>",
        f"<p class=note>{len(rows)} cells of {card['n']} pictures, the same prompts and noise (seed {card['seed']}) in "
        f"all. NFE counts the network evaluations spent on each picture; guidance other than 1 doubles it.</p>",
        f"<h2>The Pareto front of {html.escape(scores[0].name)}: nothing cheaper is as good</h2>",
        table_html(pareto_front(rows, "nfe", scores[0]), brief),
        *(picture_html(name.replace("_", " "), data) for name, data in results.plots.items()),
        "<h2>Real pictures by the same scores</h2>",
        table_html(ceilings, list(ceilings[0])),
        *(["<h2>The model itself</h2>", table_html([sweep.model], list(sweep.model))] if sweep.model else []),
        "<div class=grids>",
        *(picture_html(prompt, data) for prompt, data in zip(prompts, results.grids.values(), strict=True)),
        "</div><h2>All cells</h2>",
        table_html(rows, columns, scores),
        "<h2>How these scores were made</h2>",
        f"<pre>{html.escape(json.dumps(card, indent=2))}</pre>",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>dit sweep</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>"
    )


def table_csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_report(sweep: Sweep, cells: Sequence[Cell], rows: Sequence[Row]) -> dict[str, bytes]:
    """Writes results.csv, results.json, plots/, samples/ and report.html; returns the plots and grids by name."""
    folder: Path = sweep.folder
    ceilings = sweep.ceilings()
    n = len(sweep.protocol.prompts)
    scores = [Score(m.column(k, n), up) for m in sweep.metrics.values() for k, up in m.headlines.items()]
    plots: dict[str, bytes] = {}
    for score in scores:
        plots[f"{score.name}_against_steps"] = to_png(against_steps(rows, score, ceilings))
        plots[f"{score.name}_against_nfe"] = to_png(against_cost(rows, score, ceilings))
    grids = {name: png(grid) for name, grid in picture_grids(sweep, cells).items()}
    told = {
        "rows": list(rows),
        "higher_is_better": {score.name: score.higher_is_better for score in scores},
        "ceilings": ceilings,
        "model": sweep.model,
        "protocol": dict(sweep.protocol.card),
    }
    write_atomic(folder / "results.csv", table_csv(rows))
    write_atomic(folder / "results.json", json.dumps(told, indent=2) + "\n")
    for kind, pictures in {"plots": plots, "samples": grids}.items():
        for name, data in pictures.items():
            write_atomic(folder / kind / f"{name}.png", data)
    write_atomic(folder / "report.html", page(sweep, rows, Results(scores, ceilings, plots, grids)))
    return plots | grids
