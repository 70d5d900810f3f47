"""The results of a sweep as files: tables, plots, picture grids, and one HTML page that holds them all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dit.evaluation.page import page
from dit.evaluation.plots import figures_of, to_png
from dit.evaluation.results import Best, Results, varying
from dit.evaluation.sweep import Row, name_of
from dit.evaluation.tables import table_csv
from dit.evaluation.trade_off import TradeOff
from dit.evaluation.trade_off_plot import trade_off_plot
from dit.files import write_atomic
from dit.picture_files import png
from dit.sample_grid import captioned_grid

TILE = 64  # pixels that small pictures are magnified to


def picture_grids(results: Results) -> dict[str, Image.Image]:
    """Returns a grid for each shown prompt, all pictures from the same noise: one row for each sampler, guidance scale,
    time grid and model, and one column for each number of steps (or guidance scale if steps do not vary). For a single
    cell, returns one grid with a prompt below each picture."""
    pairs = [(row, strip) for row, strip in zip(results.named, results.strips, strict=True) if len(strip)]
    if not pairs:
        return {}
    rows, strips = [row for row, _ in pairs], to_one_size([strip for _, strip in pairs])
    shown = min(len(strip) for strip in strips)
    if len(pairs) == 1:
        return {"pictures": captioned_grid(strips[0], results.prompts[:shown], min(shown, 4), side=128)}
    differ = varying(rows, results.labels)
    across = next((name for name in ("steps", "guidance") if name in differ), "steps")
    down = [name for name in differ if name != across]
    order = sorted({row.get(across, 0) for row in rows})
    kinds = list(dict.fromkeys(name_of(row, down) for row in rows))
    placed = {(name_of(row, down), row.get(across, 0)): strip for row, strip in zip(rows, strips, strict=True)}
    blank = torch.full_like(strips[0], 255)
    header = [heading(across, value) for value in order]
    grids = {}
    for place in range(shown):
        images = torch.stack([placed.get((kind, value), blank)[place] for kind in kinds for value in order])
        grids[f"prompt_{place}"] = captioned_grid(images, kinds, len(order), side=TILE, header=header)
    return grids


def heading(name: str, value: float) -> str:
    return f"guidance {value:g}" if name == "guidance" else f"{value} step" + "s" * (value != 1) if value else " "


def to_one_size(strips: Sequence[Tensor]) -> list[Tensor]:
    """Returns all strips, (S, 3, H, W) uint8, with the largest H and W among them, so that they fit one grid."""
    height, width = (max(strip.shape[i] for strip in strips) for i in (2, 3))
    return [s if s.shape[2:] == (height, width) else F.interpolate(s, (height, width), mode="nearest") for s in strips]


def plots_of(results: Results, bests: Sequence[Best]) -> dict[str, bytes]:
    """Returns the plots of each headline as PNGs by name."""
    floors = {row["pictures"]: row for row in results.floor_rows}
    plots: dict[str, bytes] = {}
    for best in bests:
        rows: list[Row] = [row for row in results.scored if best.score.known(row)]
        tied = {id(row) for row in [best.row, *(rows if best.tied is None else best.tied)]}
        names = [results.name_of(row) for row in rows]
        figures = figures_of(rows, names, [id(row) in tied for row in rows], best.score, floors)
        plots |= {name: to_png(figure) for name, figure in figures.items()}
    return plots


def write_report(folder: Path, results: Results, trade_off: TradeOff | None = None) -> dict[str, bytes]:
    """Writes results.csv, results.json, plots/, samples/ and report.html; returns the plots and grids by name.
    trade_off: of a fine-tuning, which the report then begins with."""
    bests = [results.best(score) for score in results.scores]
    plots = plots_of(results, bests)
    if trade_off is not None:
        plots |= {"trade_off": to_png(trade_off_plot(trade_off))}
    grids = {name: png(grid) for name, grid in picture_grids(results).items()}
    content = {
        "title": results.title,
        "cards": [asdict(card) for card in results.cards],
        "headlines": dict(results.headlines),
        "floors": {name: asdict(card) for name, card in results.floors.items()},
        "models": [
            row | {"made_with": model["made_with"]}
            for row, model in zip(results.model_rows, results.models, strict=True)
        ],
        "again": asdict(results.confirmation) if results.confirmation else None,
        "notes": list(results.notes),
        "fine_tuning": [] if trade_off is None else trade_off.sentences(),
    }
    write_atomic(folder / "results.csv", table_csv(results.table))
    write_atomic(folder / "results.json", json.dumps(content, indent=2) + "\n")
    for kind, pictures in {"plots": plots, "samples": grids}.items():
        for name, data in pictures.items():
            write_atomic(folder / kind / f"{name}.png", data)
    write_atomic(folder / "report.html", page(results, bests, plots, grids, trade_off))
    return plots | grids
