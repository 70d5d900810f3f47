"""The report of a sweep as one HTML page: the best cell, plots, pictures, tables and cards. The template is
report.html.j2; this file makes the values that it shows."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from PIL import Image

from dit.evaluation.card import Card
from dit.evaluation.folding import folded_models
from dit.evaluation.results import Best, Results, Score, calls_column, pareto_front, varying
from dit.evaluation.sampling_cost import in_words
from dit.evaluation.sweep import RECIPE_FIELDS, Row, row_of
from dit.evaluation.tables import columns_of, cost_columns, leaves, number, table, with_interval
from dit.evaluation.trade_off import TradeOff

MAX_BYTES, MAX_WIDTH = 600_000, 1600  # larger pictures are scaled down to this width in pixels


@dataclass(frozen=True)
class Section:
    """The results of one size, the best rows by each score, the plots by name and format, and the grids by name as
    PNGs. trade_off: of a fine-tuning, with which the section then begins. single: the results before runs that differ
    only in the seed were folded; None if there are none."""

    results: Results
    bests: Sequence[Best]
    plots: Mapping[str, Mapping[str, bytes]]
    grids: Mapping[str, bytes]
    trade_off: TradeOff | None = None
    single: Results | None = None

    @property
    def unfolded(self) -> Results:
        return self.results if self.single is None else self.single


def cell_name(results: Results, row: Row) -> str:
    """Returns the name of a cell with its cost: euler, 8 steps (8 NFE)."""
    return results.name_of(row) + (f" ({row['nfe']:g} NFE)" if row.get("nfe") else "")


def finding(results: Results, best: Best) -> list[str]:
    """Returns sentences about the best cell."""
    score = best.score.name
    value = with_interval(best.row, score)
    if not best.others:
        return [f"{cell_name(results, best.row)}: {score} {value}."]
    if best.tied is None:
        comparison = "Its significance is unknown, because this score is not a mean over pictures."
    elif not best.tied:
        comparison = "It is significantly better than all others (95 %)."
    else:
        cheapest = f"{cell_name(results, best.tied[0])}, {with_interval(best.tied[0], score)}"
        count = f"{len(best.tied)} of {best.others} others"
        comparison = f"Not significantly different (95 %): {count}; the cheapest is {cheapest}."
    return [f"Best by {score}: {cell_name(results, best.row)}, {value}.", comparison]


def confirmation(results: Results, score: Score) -> list[str]:
    """Returns a sentence about the best cell on fresh noise, if it was scored."""
    card = results.confirmation
    if card is None:
        return []
    if card.failed is not None:
        return [f"On fresh noise it failed: {card.failed}."]
    row = row_of(card)
    return [f"On fresh noise: {with_interval(row, score.name)}."] if score.known(row) else []


def lead(results: Results, best: Best) -> dict[str, Any]:
    """Returns the finding, and a table of the cells that may be the best."""
    rows = [best.row, *(best.tied or ())]
    columns = columns_of(rows, results.row_labels, [best.score.name, *cost_columns(rows)])
    found = table(rows, columns, [best], results.floor_rows) if best.tied else None
    sentences = finding(results, best) + confirmation(results, best.score) + in_words(best.row)
    return {"sentences": sentences, "table": found}


def overview(results: Results) -> str:
    """Returns a sentence on what all cells have in common."""
    rows = results.named
    differ = varying(rows, results.labels)
    shared = [f"{name.replace('_', ' ')} {number(rows[0][name])}" for name in results.labels if name not in differ]
    count, pictures = len(rows), f"{rows[0]['n']} picture{'s' * (rows[0]['n'] > 1)}"
    shared += [pictures + " each" * (count > 1), f"seed {number(rows[0]['seed'])}"]
    return (f"{count} cells: " if count > 1 else "") + ", ".join(shared) + "."


def picture(title: str, data: bytes, scale: float) -> dict[str, Any]:
    """Returns a picture with its title. Its displayed width is at least `scale` times its own, so that its text stays
    legible on narrow screens."""
    width = Image.open(io.BytesIO(data)).width
    return {"title": title, "wide": width > 1000, "min_width": min(round(scale * width), 720), "source": data_url(data)}


def data_url(data: bytes) -> str:
    """Returns a PNG as a data URL; a large one as a smaller JPEG, so that the page opens on a phone."""
    kind = "png"
    if len(data) > MAX_BYTES:
        image, kind, buffer = Image.open(io.BytesIO(data)).convert("RGB"), "jpeg", io.BytesIO()
        image.thumbnail((MAX_WIDTH, 4 * MAX_WIDTH))
        image.save(buffer, format="JPEG", quality=90)
        data = buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def plot_groups(scores: Sequence[Score], plots: Mapping[str, bytes]) -> Iterator[dict[str, Any]]:
    """Yields the plots of each headline."""
    for score in scores:
        names = [name for name in plots if name.startswith((f"{score.name}_against_", f"{score.name}_ranking"))]
        if names:
            drawn = [picture(name.replace("_", " "), plots[name], 0.43) for name in names]
            yield {"name": score.name, "pictures": drawn}


def sample_grids(results: Results, grids: Mapping[str, bytes]) -> list[dict[str, Any]]:
    titles = {f"prompt_{i}": f"“{prompt}”" for i, prompt in enumerate(results.prompts[: len(grids)])}
    return [picture(titles.get(name, "The first pictures"), data, 0.7) for name, data in grids.items()]


def pareto_fronts(results: Results, bests: Sequence[Best]) -> Iterator[dict[str, Any]]:
    """Yields a table for each headline, if cells have a cost."""
    rows, costs = results.scored, cost_columns(results.scored)
    columns = [*(best.score.name for best in bests), *costs]
    for best in bests if len(rows) > 1 and "nfe" in costs else ():
        known = [row for row in rows if row.get("nfe") and best.score.known(row)]
        front = pareto_front(known, calls_column(rows), best.score)
        found = table(front, columns_of(rows, results.row_labels, columns), bests, results.floor_rows)
        yield {"name": best.score.name, "table": found}


def all_cells(results: Results, bests: Sequence[Best]) -> dict[str, Any]:
    """Returns a table of every cell with every score."""
    rows, headlines = results.scored, [best.score.name for best in bests]
    scores = [*headlines, *cost_columns(rows), *(name for name in results.columns if name not in headlines)]
    marked = bests if len(rows) > 1 else ()
    return table(rows, columns_of(rows, results.row_labels, scores), marked, results.floor_rows)


def models_table(results: Results) -> dict[str, Any]:
    """Returns a table of the scores of the models, runs that differ only in the seed folded."""
    rows = folded_models(results)
    labels = [name for name in ("model", "runs") if name in rows[0]]
    scores = dict.fromkeys(name for row in rows for name in row if name not in (*labels, "intervals"))
    return table(rows, columns_of(rows, labels, list(scores)))


def floor_notes(results: Results) -> list[str]:
    """Returns sentences about floors that are missing, that failed, or whose number of pictures differs."""
    if not results.floors:
        return ["No floors: there are no real pictures besides the references."]
    notes = []
    for name, card in results.floors.items():
        if card.failed is not None:
            notes.append(f"{name} pictures could not be scored: {card.failed}")
            continue
        row = row_of(card)
        if other := [score for score in card.scores if score not in results.columns]:
            found = ", ".join(f"{score} {with_interval(row, score)}" for score in other)
            notes.append(f"Too few real pictures were left for the same N: {row['n']} {name} pictures have {found}.")
    return notes


def cards(results: Results) -> Iterator[dict[str, Any]]:
    """Yields one card for all cells of a subject and a protocol, and one for each scored model."""
    groups: dict[str, list[Card]] = {}
    for card in (*results.cards, *results.floors.values(), *filter(None, [results.confirmation])):
        fixed = {name: value for name, value in card.subject.items() if name not in RECIPE_FIELDS}
        groups.setdefault(json.dumps([fixed, card.protocol], sort_keys=True), []).append(card)
    yield from map(card_of, groups.values())
    for model in results.models:
        yield {"name": model["model"], "lists": {"What the scores depend on": leaves(model["made_with"])}, "json": None}


def card_of(group: Sequence[Card]) -> dict[str, Any]:
    """Returns a group of cards as names and values, and as JSON."""
    card = group[0]
    shown = ("again", "images", "model", "checkpoint", "weights", "size")
    name = ", ".join(str(card.subject[k]) for k in shown if isinstance(card.subject.get(k), str))
    fields = {
        "What was scored": leaves({k: v for k, v in card.subject.items() if len(group) == 1 or k not in RECIPE_FIELDS}),
        "How it was scored": leaves(card.protocol),
        "Versions": leaves(card.versions),
    }
    contents = [asdict(card) for card in group]
    shared = {key: contents[0][key] for key in ("protocol", "versions", "headlines")}
    whole = {**shared, "cells": [{k: v for k, v in content.items() if k not in shared} for content in contents]}
    count = f", {len(group)} cells" if len(group) > 1 else ""
    lists = {title: found for title, found in fields.items() if found}
    return {"name": (name or "card") + count, "lists": lists, "json": json.dumps(whole, indent=1)}


def template(name: str) -> Template:
    """Returns a template of this folder; all values are escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def page(sections: Sequence[Section]) -> str:
    """Returns the report as HTML without links to other files: a section for each size."""
    every = [section.unfolded for section in sections]
    return template("report.html.j2").render(
        title=every[0].title,
        cells=sum(len(results.cards) for results in every),
        notes=list(dict.fromkeys(note for results in every for note in results.notes)),
        sections=list(map(content_of, sections)),
        cards=[card for results in every for card in cards(results)],
    )


def content_of(section: Section) -> dict[str, Any]:
    """Returns what the template shows of a size."""
    results, bests, plots = (
        section.results,
        section.bests,
        {name: files["png"] for name, files in section.plots.items()},
    )
    return {
        "size": results.size,
        "cells": len(results.cards),
        "overview": overview(results) if results.cards else "",
        "reading": results.reading,
        "fine_tuning": None if section.trade_off is None else section.trade_off.sentences(),
        "trade_off": [picture("trade off", plots["trade_off"], 0.43)] if "trade_off" in plots else [],
        "lead": lead(results, bests[0]) if bests else None,
        "failed": {results.name_of(row): row["failed"] for row in results.named if row["failed"] is not None},
        "plots": list(plot_groups([best.score for best in bests], plots)),
        "samples": sample_grids(results, section.grids),
        "fronts": list(pareto_fronts(results, bests)),
        "all_cells": all_cells(results, bests) if results.scored else None,
        "floor_notes": floor_notes(results),
        "models": models_table(results) if results.models else None,
    }
