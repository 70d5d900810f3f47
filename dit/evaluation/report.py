"""The results of a sweep as files: tables, plots, picture grids, and one HTML page that holds them all."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dit.evaluation.plots import (
    against_cost,
    against_steps,
    lower_is_better,
    main_metrics,
    pareto_front,
    to_png,
)
from dit.evaluation.sweep import Cell, Row, Sweep
from dit.files import write_atomic
from dit.pictures import captioned_grid, png

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 68rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; white-space: nowrap; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e4e4e4; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #888; }
td.best { font-weight: 700; background: #e9f5ec; } img { max-width: 100%; height: auto; }
.note { color: #555; } pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .8rem; }
"""


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


def best_of(rows: Sequence[Row]) -> dict[str, float]:
    pick = {True: min, False: max}
    return {m: pick[lower_is_better(m)](row[m] for row in rows) for m in main_metrics(rows)}


def table_html(rows: Sequence[Row]) -> str:
    best = best_of(rows)

    def cell(row: Row, name: str) -> str:
        value = row[name]
        text = f"{value:.4g}" if isinstance(value, float) else html.escape(str(value))
        return f"<td class=best>{text}</td>" if name in best and value == best[name] else f"<td>{text}</td>"

    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
    body = "".join("<tr>" + "".join(cell(row, name) for name in row) + "</tr>" for row in rows)
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def embed(data: bytes, text: str) -> str:
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'


def page(rows: Sequence[Row], sweep: Sweep, plots: Mapping[str, bytes], grids: Mapping[str, bytes], extra: Any) -> str:
    ceilings = [{"pictures": name, **scores} for name, scores in extra.items()]
    metric = main_metrics(rows)[0]
    front = pareto_front(rows, "nfe", metric)
    prompts = sweep.protocol.prompts
    parts = [
        f"<h1>Sweep of {html.escape(str(sweep.protocol.card['checkpoint']))}</h1>",
        f"<p class=note>{len(rows)} cells, {rows[0]['n']} pictures in each, the same prompts and noise in all. NFE "
        f"counts the network evaluations spent on each picture; guidance other than 1 doubles it.</p>",
        f"<h2>The front: {html.escape(metric)} for its price</h2>",
        table_html(front),
        *(f"<h2>{html.escape(name.replace('_', ' '))}</h2>{embed(data, name)}" for name, data in plots.items()),
        "<h2>What no sampler can beat</h2>",
        table_html(ceilings),
        *(
            f"<h2>“{html.escape(prompts[place])}”</h2><div class=scroll>{embed(data, prompts[place])}</div>"
            for place, data in enumerate(grids.values())
        ),
        "<h2>All cells</h2>",
        table_html(rows),
        "<h2>How these scores were made</h2>",
        f"<pre>{html.escape(json.dumps(sweep.protocol.card, indent=2))}</pre>",
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
    plots: dict[str, bytes] = {}
    for metric in main_metrics(rows):
        plots[f"{metric}_against_steps"] = to_png(against_steps(rows, metric, ceilings))
        plots[f"{metric}_against_nfe"] = to_png(against_cost(rows, metric, ceilings))
    grids = {name: png(grid) for name, grid in picture_grids(sweep, cells).items()}
    results = {"rows": list(rows), "ceilings": ceilings, "protocol": dict(sweep.protocol.card)}
    write_atomic(folder / "results.csv", table_csv(rows))
    write_atomic(folder / "results.json", json.dumps(results, indent=2) + "\n")
    for name, data in plots.items():
        write_atomic(folder / "plots" / f"{name}.png", data)
    for name, data in grids.items():
        write_atomic(folder / "samples" / f"{name}.png", data)
    write_atomic(folder / "report.html", page(rows, sweep, plots, grids, ceilings))
    return plots | grids
