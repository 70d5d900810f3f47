"""The results of a sweep as files: tables, plots, picture grids, and one HTML page that holds them all."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dit.evaluation.folding import fold
from dit.evaluation.latex import table_latex
from dit.evaluation.page import Section, all_cells, models_table, page
from dit.evaluation.plots import figures_of, to_files
from dit.evaluation.results import Best, Results, varying
from dit.evaluation.sweep import Row, name_of
from dit.evaluation.tables import table_csv
from dit.evaluation.trade_off import TradeOff
from dit.evaluation.trade_off_plot import trade_off_plot
from dit.files import write_atomic
from dit.picture_files import png
from dit.sample_grid import captioned_grid

LATEX_NOTE = r"""\usepackage{booktabs} in the preamble. Bold: the best; *: not significantly different from it.
Small numbers: distances to the ends of the 95 % interval. results.json has the protocol of each score."""
MODELS_NOTE = r"\usepackage{booktabs} in the preamble. The scores depend on no sampler."
MODELS_FOLDED = """Small numbers: distances to the ends of the 95 % interval of the mean over runs that differ only in
the seed; models.csv has the single runs."""
MODELS_ERRORS = "Columns with `error` in the name: the standard error over the pictures, of a single run."
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


def plots_of(results: Results, bests: Sequence[Best]) -> dict[str, dict[str, bytes]]:
    """Returns the plots of each headline by name, each as files by format."""
    floors = {row["pictures"]: row for row in results.floor_rows}
    plots: dict[str, dict[str, bytes]] = {}
    for best in bests:
        rows: list[Row] = [row for row in results.scored if best.score.known(row)]
        tied = {id(row) for row in [best.row, *(rows if best.tied is None else best.tied)]}
        names = [results.name_of(row) for row in rows]
        figures = figures_of(rows, names, [id(row) in tied for row in rows], best.score, floors)
        plots |= {name: to_files(figure) for name, figure in figures.items()}
    return plots


def table_of(several: Sequence[Results]) -> list[Row]:
    """Returns the rows of results.csv, of all sizes."""
    return [row for results in several for row in results.table]


def section_of(results: Results, trade_off: TradeOff | None) -> Section:
    """Returns the plots, grids and best rows of one size, runs that differ only in the seed folded."""
    single, results = results, fold(results)
    bests = [results.best(score) for score in results.scores]
    plots = plots_of(results, bests)
    if trade_off is not None:
        plots |= {"trade_off": to_files(trade_off_plot(trade_off))}
    grids = {name: png(grid) for name, grid in picture_grids(results).items()}
    return Section(results, bests, plots, grids, trade_off, single)


def models_note(table: Mapping[str, Any]) -> str:
    """Returns what a reader of a table of models has to know, by the columns that it has."""
    names = [column.name for column in table["columns"]]
    notes = [MODELS_NOTE, *[MODELS_FOLDED] * ("runs" in names)]
    return "\n".join([*notes, *[MODELS_ERRORS] * any(name.endswith("_error") for name in names)])


def write_report(
    folder: Path, several: Sequence[Results], trade_offs: Sequence[TradeOff | None] | None = None
) -> dict[str, bytes]:
    """Writes results.csv, results.json, results.tex, plots/, samples/ and report.html of the results of each size, and
    models.tex and models.csv if models have scores of their own; returns the plots and grids as PNGs by name. Of
    several sizes the names end with the size. trade_offs: of a fine-tuning, for each size."""
    sections = list(map(section_of, several, trade_offs or [None] * len(several)))
    pictures: dict[str, bytes] = {}
    for section in sections:
        suffix = f"_{section.results.size}" if len(several) > 1 else ""
        for name, files in section.plots.items():
            pictures[name + suffix] = files["png"]
            for kind, data in files.items():
                write_atomic(folder / "plots" / f"{name}{suffix}.{kind}", data)
        for name, data in section.grids.items():
            pictures[name + suffix] = data
            write_atomic(folder / "samples" / f"{name}{suffix}.png", data)
        if section.bests:
            note = "\n".join([LATEX_NOTE, *textwrap.wrap(section.results.reading, 110)])
            table = table_latex(all_cells(section.results, section.bests), note)
            write_atomic(folder / f"results{suffix}.tex", table)
    if several[0].models:
        own = models_table(several[0])
        write_atomic(folder / "models.tex", table_latex(own, models_note(own)))
        write_atomic(folder / "models.csv", table_csv(several[0].table_of_models))
    write_atomic(folder / "results.csv", table_csv(table_of(several)))
    write_atomic(folder / "results.json", json.dumps(content_of(sections), indent=2) + "\n")
    write_atomic(folder / "report.html", page(sections))
    return pictures


def content_of(sections: Sequence[Section]) -> dict[str, Any]:
    """Returns the content of results.json. Of several sizes, what is not in the cards is by size, in `sizes`."""
    several = [section.unfolded for section in sections]
    each = {
        section.results.size: {
            "floors": {name: asdict(card) for name, card in section.unfolded.floors.items()},
            "again": asdict(section.unfolded.confirmation) if section.unfolded.confirmation else None,
            "fine_tuning": [] if section.trade_off is None else section.trade_off.sentences(),
        }
        for section in sections
    }
    return {
        "title": several[0].title,
        "cards": [asdict(card) for results in several for card in results.cards],
        "headlines": dict(several[0].headlines),
        "models": [
            row | {"made_with": model["made_with"]}
            for results in several
            for row, model in zip(results.model_rows, results.models, strict=True)
        ],
        "notes": list(dict.fromkeys(note for results in several for note in results.notes)),
        **(each[several[0].size] if len(several) == 1 else {"sizes": each}),
    }
