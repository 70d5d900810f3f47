"""One page of HTML that holds a whole sweep: what is best, plots, pictures, tables, and how it was all made."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from PIL import Image

from dit.evaluation.card import Card
from dit.evaluation.results import Best, Results, Score, pareto_front, varying
from dit.evaluation.style import SCRIPT, STYLE
from dit.evaluation.sweep import Row, row_of
from dit.evaluation.tables import columns_of, leaves, number, pairs_html, table_html, with_interval

HEAVY, WIDEST = 600_000, 1600  # bytes of a picture that goes into the page as it is; pixels of a heavier one
WALKED = ("sampler", "grid", "steps", "guidance", "recipe")
HOW_TO_READ = """
Behind a score stands how far its 95 % interval reaches. Real pictures by the same scores are what a perfect model would
get; autoencoder pictures are real ones encoded and decoded, the most that sampling can reach. Distances depend on the
number of pictures: compare them only under one name.
"""
OF_MODELS = """
Bits per dimension are of a model itself, without guidance and whatever the sampler: the lower, the better it predicts
held-out pictures. The error is one standard error over the pictures. In latents they compare models of one autoencoder
alone.
"""
AND_A_SWEEP = """
Every cell made pictures for the same prompts from the same noise, so that differences are those of the models and the
sampling alone. ★ is the best cell; ≈ cannot be told from it: with 95 % the marked cells hold the truly best one
(differences picture by picture, corrected for the number of cells). The best of many is flattered by luck: quote its
score on fresh noise. On the Pareto front no other cell is as cheap and better.
"""


def finding(results: Results, best: Best) -> list[str]:
    """The winner in sentences to quote."""
    score, row = best.score.name, best.row
    price = f" ({row['nfe']:g} NFE)" if row.get("nfe") else ""
    if not best.others:
        return [f"{results.name_of(row)}{price}: {score} {with_interval(row, score)}."]
    told = [f"Best by {score}: {results.name_of(row)}{price}, {with_interval(row, score)}."]
    if best.alike is None:
        told.append("How sure that is cannot be said: this score is not made of parts of single pictures.")
    elif not best.alike:
        others = f"each of the {best.others} others" if best.others > 1 else "the other one"
        told.append(f"It is better than {others} at 95 %.")
    else:
        cheap = best.alike[0]
        price = f" ({cheap['nfe']:g} NFE)" if cheap.get("nfe") else ""
        which = "the cheapest of them " if len(best.alike) > 1 else ""
        of = f"{len(best.alike)} of the {best.others} others cannot"
        if len(best.alike) == best.others:
            of = f"None of the {best.others} others can" if best.others > 1 else "The other one cannot"
        told.append(
            f"{of} be told from it at 95 %, {which}{results.name_of(cheap)}{price}, {with_interval(cheap, score)}."
        )
    return told


def again_told(results: Results, score: Score) -> str | None:
    """The winner's score on noise that it was not chosen by."""
    if results.again is None:
        return None
    if results.again.failed is not None:
        return f"On fresh noise it failed: {results.again.failed}."
    row = row_of(results.again)
    return f"On fresh noise: {with_interval(row, score.name)}." if score.known(row) else None


def lead_html(results: Results, best: Best) -> str:
    told = finding(results, best)
    if again := again_told(results, best.score):
        told.append(again)
    lines = f"<p><b>{html.escape(told[0])}</b> {html.escape(' '.join(told[1:]))}</p>"
    if best.alike:
        rows = [best.row, *best.alike]
        columns = columns_of(rows, results.differing, [best.score.name, *priced(rows)])
        table = table_html(rows, columns, [best], results.floor_rows)
        lines += f"<details><summary>The {len(rows)} cells that may be the best</summary>{table}</details>"
    return f"<section class=lead>{lines}</section>"


def priced(rows: Sequence[Row]) -> list[str]:
    """The columns of cost worth a table."""
    return [name for name in ("nfe", "seconds") if any(row.get(name) for row in rows)]


def everywhere(results: Results) -> str:
    """What all cells have in common, told once."""
    rows = results.named
    differ = varying(rows, results.told)
    told = [f"{name.replace('_', ' ')} {number(rows[0][name])}" for name in results.told if name not in differ]
    many = len(rows) > 1
    pictures = "1 picture" if rows[0]["n"] == 1 else f"{rows[0]['n']} pictures"
    told += [pictures + " each" * many, f"seed {number(rows[0]['seed'])}"]
    return f"<p class=faint>{f'{len(rows)} cells: ' * many}{html.escape(', '.join(told))}.</p>"


def picture_html(title: str, data: bytes, scale: float) -> str:
    """A picture under its title. Where the screen is narrower than `scale` times the picture, it scrolls in its box, so
    that its letters stay legible."""
    name, width = html.escape(title), Image.open(io.BytesIO(data)).width
    least, wide = min(round(scale * width), 720), " class=wide" if width > 1000 else ""
    image = f'<img alt="{name}" style="min-width:{least}px" src="{source_of(data)}">'
    return f"<figure{wide}><figcaption>{name}</figcaption><div class=scroll>{image}</div></figure>"


def source_of(data: bytes) -> str:
    """A PNG within the page; a heavy one smaller, as a JPEG: the page must open on a phone."""
    kind = "png"
    if len(data) > HEAVY:
        picture, kind, buffer = Image.open(io.BytesIO(data)).convert("RGB"), "jpeg", io.BytesIO()
        picture.thumbnail((WIDEST, 4 * WIDEST))
        picture.save(buffer, format="JPEG", quality=90)
        data = buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def plots_html(scores: Sequence[Score], plots: Mapping[str, bytes]) -> str:
    """Those of the first headline open, those of the others folded."""
    parts: list[str] = []
    for score in scores:
        names = [name for name in plots if name.startswith((f"{score.name}_against_", f"{score.name}_ranking"))]
        drawn = "".join(picture_html(name.replace("_", " "), plots[name], 0.43) for name in names)
        if drawn and not parts:
            parts.append(f"<h2>{html.escape(score.name)}</h2><div class=pictures>{drawn}</div>")
        elif drawn:
            title = f"<summary>Plots of {html.escape(score.name)}</summary>"
            parts.append(f"<details>{title}<div class=pictures>{drawn}</div></details>")
    return "".join(parts)


def grids_html(results: Results, grids: Mapping[str, bytes]) -> str:
    """Two of them open, more folded."""
    titles = {f"prompt_{i}": f"“{prompt}”" for i, prompt in enumerate(results.prompts[: len(grids)])}
    drawn = [picture_html(titles.get(name, "The first pictures"), data, 0.7) for name, data in grids.items()]
    if not drawn:
        return ""
    heading = "The same prompts and noise" if len(results.cards) > 1 else "Pictures"
    shown, more = (f"<div class=pictures>{''.join(part)}</div>" for part in (drawn[:2], drawn[2:]))
    folded = f"<details><summary>{len(drawn) - 2} more prompts</summary>{more}</details>" if drawn[2:] else ""
    return f"<h2>{heading}</h2>{shown}{folded}"


def tables_html(results: Results, bests: Sequence[Best]) -> str:
    """The Pareto fronts, then every cell, the floors below each."""
    rows, floors = results.scored, results.floor_rows
    told, prices = results.differing, priced(rows)
    headlines = [best.score.name for best in bests]
    parts: list[str] = []
    for best in bests if len(rows) > 1 and "nfe" in prices else ():
        front = pareto_front([row for row in rows if row.get("nfe") and best.score.known(row)], "nfe", best.score)
        table = table_html(front, columns_of(rows, told, [*headlines, *prices]), bests, floors)
        name = html.escape(best.score.name)
        title = f"Pareto front of {name} against NFE"
        folded = f"<details><summary>{title}</summary>{table}</details>"
        parts.append(folded if parts else f"<h2>{title}</h2>{table}")
    parts.append("<h2>All cells</h2>" if len(results.cards) > 1 else "<h2>All scores</h2>")
    if len(rows) > 1:
        parts.append("<p class=faint>★ best, ≈ not told from it at 95 %; click a header to sort.</p>")
    marked = bests if len(rows) > 1 else ()
    scores = [*headlines, *prices, *(name for name in results.columns if name not in headlines)]
    parts.append(table_html(rows, columns_of(rows, told, scores), marked, floors))
    return "".join(parts) + "".join(f"<p class=faint>{html.escape(note)}</p>" for note in floor_notes(results))


def floor_notes(results: Results) -> list[str]:
    """Floors that are not there, that failed, or that are of other numbers of pictures, whose columns are others."""
    notes = (
        [] if results.floors else ["No real pictures were left to score by the same measures, beyond the references."]
    )
    for name, card in results.floors.items():
        if card.failed is not None:
            notes.append(f"{name} pictures could not be scored: {card.failed}")
            continue
        row = row_of(card)
        if other := [score for score in card.scores if score not in results.columns]:
            told = ", ".join(f"{score} {with_interval(row, score)}" for score in other)
            notes.append(f"Too few real pictures were left for the same N: {row['n']} {name} ones have {told}.")
    return notes


def failed_html(results: Results) -> str:
    lines = "".join(
        f"<dt>{html.escape(results.name_of(row))}</dt><dd>{html.escape(row['failed'])}</dd>"
        for row in results.named
        if row["failed"] is not None
    )
    return f"<section class=warn id=failed><b>Failed cells</b><dl>{lines}</dl></section>" if lines else ""


def cards_html(results: Results) -> str:
    """One for each thing that was scored by one protocol, as names and values, and exactly as JSON."""
    cards = [*results.cards, *results.floors.values(), *([results.again] if results.again else [])]
    groups: dict[str, list[Card]] = {}
    for card in cards:
        fixed = {name: value for name, value in card.subject.items() if name not in WALKED}
        groups.setdefault(json.dumps([fixed, card.protocol], sort_keys=True), []).append(card)
    return "".join(card_html(group) for group in groups.values())


def card_html(cards: Sequence[Card]) -> str:
    card = cards[0]
    shown = ("again", "images", "model", "checkpoint", "weights")
    name = ", ".join(str(card.subject[k]) for k in shown if isinstance(card.subject.get(k), str))
    fields = {
        "What was scored": leaves({k: v for k, v in card.subject.items() if len(cards) == 1 or k not in WALKED}),
        "How it was scored": leaves(card.protocol),
        "Versions": leaves(card.versions),
    }
    lists = "".join(f"<h3>{title}</h3>{pairs_html(found)}" for title, found in fields.items() if found)
    told: list[dict[str, Any]] = [asdict(c) for c in cards]
    shared = {key: told[0][key] for key in ("protocol", "versions", "headlines")}
    exact = {**shared, "cells": [{k: v for k, v in one.items() if k not in shared} for one in told]}
    count = f", {len(cards)} cells" if len(cards) > 1 else ""
    return (
        f"<details><summary>{html.escape(name or 'card')}{count}</summary>{lists}<details><summary>exactly, as JSON"
        f"</summary><pre>{html.escape(json.dumps(exact, indent=1))}</pre></details></details>"
    )


def page(results: Results, bests: Sequence[Best], plots: Mapping[str, bytes], grids: Mapping[str, bytes]) -> str:
    """The whole report as one file of HTML."""
    parts = [
        f"<h1>{html.escape(results.title).replace('/', '/<wbr>')}</h1>",
        everywhere(results) if results.cards else "",
        *(f"<p class=warn>{html.escape(note)}</p>" for note in results.notes),
        lead_html(results, bests[0]) if bests else "",
        failed_html(results),
        plots_html([best.score for best in bests], plots),
        grids_html(results, grids),
        tables_html(results, bests) if results.scored else "<p>No cell has scores.</p>" if results.cards else "",
        models_html(results.model_rows),
        how_to_read(results),
        f"<h2>How these scores were made</h2>{cards_html(results)}{model_cards_html(results)}",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(results.title)}</title><style>{STYLE}</style></head>"
        f"<body>{''.join(parts)}<script>{SCRIPT}</script></body></html>"
    )


def how_to_read(results: Results) -> str:
    cells = HOW_TO_READ * bool(results.cards) + AND_A_SWEEP * (len(results.cards) > 1)
    return f"<h2>How to read this</h2><p>{cells}{OF_MODELS * bool(results.models)}</p>"


def models_html(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return f"<h2>The models themselves</h2>{table_html(rows, columns_of(rows, names[:1], names[1:]))}"


def model_cards_html(results: Results) -> str:
    """What the scores of the models themselves depend on."""
    return "".join(
        f"<details><summary>{html.escape(model['model'])}</summary>{pairs_html(leaves(model['made_with']))}</details>"
        for model in results.models
    )
