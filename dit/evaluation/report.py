"""The results of a sweep as files: tables, plots, picture grids, and one HTML page that holds them all."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dit.evaluation.card import Card
from dit.evaluation.plots import Score, against_cost, against_steps, pareto_front, to_png
from dit.evaluation.sweep import Row, row_of
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
    """All that a report shows. cards: one for each cell; parts: for each card what `Card.write` keeps beside it;
    strips: for each card its first pictures, (S, 3, H, W) uint8, by the first S prompts. headlines: the columns worth a
    plot, and whether higher is better, the first by which the winner is chosen. floors: cards of real pictures. models:
    scores of the models themselves. again: the winner on fresh noise. notes: what a reader must know of these
    scores."""

    title: str
    cards: Sequence[Card]
    parts: Sequence[Mapping[str, Tensor]]
    strips: Sequence[Tensor]
    prompts: Sequence[str]
    headlines: Mapping[str, bool]
    floors: Mapping[str, Card] = field(default_factory=dict)
    models: Sequence[Mapping[str, Any]] = ()
    again: Card | None = None
    notes: Sequence[str] = ()

    @property
    def rows(self) -> list[Row]:
        return [row_of(card) for card in self.cards]


def picture_grids(results: Results) -> dict[str, Image.Image]:
    """For each shown prompt, a grid of one row for each sampler and guidance scale, and one column for each number of
    steps: everything differs but the noise."""
    rows = [row_of(card) for card, strip in zip(results.cards, results.strips, strict=True) if len(strip)]
    strips = [strip for strip in results.strips if len(strip)]
    steps = sorted({row.get("steps", 0) for row in rows})
    kinds = list(dict.fromkeys(kind_of(row) for row in rows))
    placed = {(kind_of(row), row.get("steps", 0)): strip for row, strip in zip(rows, strips, strict=True)}
    header = [f"{n} step" + "s" * (n > 1) for n in steps]
    grids = {}
    for place in range(min((len(strip) for strip in strips), default=0)):
        blank = torch.full_like(strips[0][0], 255)
        images = torch.stack(
            [placed[kind, n][place] if (kind, n) in placed else blank for kind in kinds for n in steps]
        )
        grids[f"prompt_{place}"] = captioned_grid(images, kinds, len(steps), side=64, header=header)
    return grids


def kind_of(row: Row) -> str:
    return f"{row.get('sampler', row.get('images'))}, guidance {row.get('guidance', 1):g}"


def table_html(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], scores: Sequence[Score] = ()) -> str:
    """Some columns of the rows, the best of each score marked."""
    best = {score.name: min(rows, key=score.loss)[score.name] for score in scores}

    def cell(row: Mapping[str, Any], name: str) -> str:
        value = row.get(name, "")
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


def page(results: Results, plots: Mapping[str, bytes], grids: Mapping[str, bytes]) -> str:
    """The whole report as one file of HTML."""
    rows = [row for row in results.rows if row["failed"] is None]
    scores = [Score(name, higher) for name, higher in results.headlines.items()]
    columns = [name for name in rows[0] if name not in ("n", "seed", "intervals", "failed")]
    brief = [name for name in columns if name in PRICE or name in results.headlines]
    floors = [{"pictures": name, **card.scores} for name, card in results.floors.items()]
    prompts = [f"“{results.prompts[place]}”" for place in range(len(grids))]
    parts = [
        f"<h1>Sweep of {html.escape(results.title)}</h1>",
        *(f"<p class=note>{html.escape(note)}</p>" for note in results.notes),
        table_html(pareto_front(rows, "nfe", scores[0]), brief),
        *(picture_html(name.replace("_", " "), data) for name, data in plots.items()),
        *(["<h2>Real pictures by the same scores</h2>", table_html(floors, list(floors[0]))] if floors else []),
        *(["<h2>The model itself</h2>", table_html(results.models, list(results.models[0]))] if results.models else []),
        "<div class=grids>",
        *(picture_html(prompt, data) for prompt, data in zip(prompts, grids.values(), strict=True)),
        "</div><h2>All cells</h2>",
        table_html(rows, columns, scores),
        "<h2>How these scores were made</h2>",
        f"<pre>{html.escape(json.dumps(asdict(results.cards[0]), indent=2))}</pre>",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>dit sweep</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>"
    )


def table_csv(rows: Sequence[Row]) -> str:
    """The rows, each interval as two columns NAME_low and NAME_high."""
    flat = [
        {k: v for k, v in row.items() if k != "intervals"}
        | {
            f"{name}_{end}": value
            for name, ends in row["intervals"].items()
            for end, value in zip(("low", "high"), ends, strict=True)
        }
        for row in rows
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in flat for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def write_report(folder: Path, results: Results) -> dict[str, bytes]:
    """Writes results.csv, results.json, plots/, samples/ and report.html; returns the plots and grids by name."""
    rows = [row for row in results.rows if row["failed"] is None]
    floors = {name: card.scores for name, card in results.floors.items()}
    plots: dict[str, bytes] = {}
    for score in (Score(name, higher) for name, higher in results.headlines.items()):
        plots[f"{score.name}_against_steps"] = to_png(against_steps(rows, score, floors))
        plots[f"{score.name}_against_nfe"] = to_png(against_cost(rows, score, floors))
    grids = {name: png(grid) for name, grid in picture_grids(results).items()}
    told = {
        "title": results.title,
        "cards": [asdict(card) for card in results.cards],
        "headlines": dict(results.headlines),
        "floors": {name: asdict(card) for name, card in results.floors.items()},
        "models": list(results.models),
        "again": None if results.again is None else asdict(results.again),
        "notes": list(results.notes),
    }
    write_atomic(folder / "results.csv", table_csv(results.rows))
    write_atomic(folder / "results.json", json.dumps(told, indent=2) + "\n")
    for kind, pictures in {"plots": plots, "samples": grids}.items():
        for name, data in pictures.items():
            write_atomic(folder / kind / f"{name}.png", data)
    write_atomic(folder / "report.html", page(results, plots, grids))
    return plots | grids
