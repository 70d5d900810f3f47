"""Ways to make pictures, all judged alike; every finished one is kept as a card, so that a sweep goes on where it
was."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dit.annotations import check_value
from dit.distributed import all_gather, barrier, rank_and_world_size
from dit.evaluation.card import Card, Fields, differences
from dit.evaluation.statistics import interval_of
from dit.files import read_json, write_atomic
from dit.metrics.base import ImageMetric
from dit.metrics.frechet import FrechetDistance
from dit.picture_files import png
from dit.scoring.references import SCORING_CODE
from dit.scoring.samples import Done, SampleBatch, Scores, score_samples

# The code that makes the numbers of a card: one of other code never answers for this one.
RESULT_CODE = (
    *SCORING_CODE,
    *("backbones", "checkpoints", "diffusion", "encoders", "layers", "pipeline", "precision", "runs"),
    *("evaluation/floors", "evaluation/likelihood", "evaluation/makers", "evaluation/model_scores"),
    *("evaluation/selftest", "evaluation/sources", "evaluation/statistics", "evaluation/subjects", "evaluation/sweep"),
)
Row = dict[str, Any]
Pictures = Callable[[int, Done], Iterator[SampleBatch]]


def name_of(fields: Fields, told: Sequence[str]) -> str:
    """What a reader calls a thing by these of its fields: euler, 8 steps, guidance 2."""
    units = {"steps": "{} step" if fields.get("steps") == 1 else "{} steps", "guidance": "guidance {:g}"}
    return ", ".join(units.get(name, "{}").format(fields[name]) for name in told if fields.get(name) is not None)


def digest_of(fields: Any) -> str:
    """A short name of plain fields by their content."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Cell:
    """subject: all that tells this way to make pictures from others, as its card will say. pictures: (seed, a function
    that is told how many are done) -> this process's share of them."""

    subject: Fields
    pictures: Pictures

    @property
    def name(self) -> str:
        """What a reader calls it."""
        told = ("checkpoint", "weights", "sampler", "grid", "images", "model", "steps", "guidance")
        return name_of(self.subject, told)

    @property
    def key(self) -> str:
        told = [self.subject[k] for k in ("images", "model", "sampler", "steps", "guidance") if k in self.subject]
        words = [f"{t:g}" if isinstance(t, float) else re.sub(r"[^\w.-]+", "-", str(t)) for t in told]
        return "_".join([*words, digest_of(self.subject)])


@dataclass(frozen=True)
class Protocol:
    """What all the results of a sweep share. card: what their cards say of it; only alike may be compared. prompts: a
    text for each picture. shown: how many of the first pictures are kept to look at."""

    card: Fields
    versions: Fields
    prompts: Sequence[str]
    seed: int
    shown: int

    @property
    def claim(self) -> dict[str, Any]:
        """What a folder of results is for."""
        return {"protocol": dict(self.card), "versions": dict(self.versions), "shown": self.shown}


def row_of(card: Card) -> Row:
    """A card as a row of a table: what a reader tells the cells apart by, the cost and the scores."""
    told = {name: value for name, value in card.subject.items() if isinstance(value, (str, int, float))}
    told = {name: value for name, value in told.items() if name not in ("weights_sha256", "step")}
    price = {**card.cost, "n": card.protocol["n"], "seed": card.protocol["seed"]}
    return told | price | dict(card.scores) | {"intervals": dict(card.intervals), "failed": card.failed}


def cost_of(verdict: Scores, world: int) -> dict[str, float]:
    """Of a picture, and how many are made in a second, by all processes at once."""
    made = verdict.seconds / world
    speed = verdict.n / made if made else 0.0
    return {"nfe": verdict.nfe, "seconds": made / verdict.n, "images_per_second": speed}


class Sweep:
    """Cards, one for each cell, in FOLDER/cells. A cell that is there already is read, not made again. prepare: called
    once, before the first picture is made."""

    def __init__(
        self, metrics: Mapping[str, ImageMetric], protocol: Protocol, folder: Path, prepare: Callable[[], object]
    ) -> None:
        self.metrics, self.protocol, self.folder = metrics, protocol, folder
        self._prepare: Callable[[], object] | None = prepare
        self._claim_folder()

    def headlines(self, n: int) -> dict[str, bool]:
        """The columns worth a plot at n pictures, and whether higher is better."""
        metrics = self.metrics.values()
        return {m.column(name, n, self.references(m)): up for m in metrics for name, up in m.headlines.items()}

    def references(self, metric: ImageMetric) -> int | None:
        """How many real pictures a metric is shown; None for none, and for published statistics."""
        reference: Mapping[str, Any] = self.protocol.card.get("reference", {}).get(metric.reference_split, {})
        return reference.get("count")

    @property
    def notes(self) -> list[str]:
        """What a reader should bear in mind with these scores."""
        found = []
        for metric in self.metrics.values():
            n, references = len(self.protocol.prompts), self.references(metric)
            column = metric.column(next(iter(metric.headlines)), n, references)
            if isinstance(metric, FrechetDistance):
                counts = {"pictures": n, "references": references}
                few = [f"{count} {of}" for of, count in counts.items() if count is not None and count < metric.dim]
                if few:
                    found.append(
                        f"{column}: {' and '.join(few)} are fewer than its {metric.dim} features: good for ranking "
                        f"these results alone, not for comparison with others"
                    )
            if metric.biased and references is not None and references < n:
                found.append(
                    f"{column}: {references} references are fewer than the {n} pictures: not comparable with "
                    f"published figures; raise references={references}, or give more real pictures with real=PATH"
                )
        return found

    def _claim_folder(self) -> None:
        """Raises ValueError when the folder holds the cells of another protocol."""
        file, claim = self.folder / "protocol.json", json.loads(json.dumps(self.protocol.claim))
        if file.is_file():
            try:
                held = read_json(file, nan=True)
                check_value(held, Mapping[str, Any], str(file))
            except ValueError as error:
                raise ValueError(f"{error}; remove it, or choose another folder with out=DIR") from None
            differing = differences(held, claim)
            if differing:
                raise ValueError(
                    f"{self.folder} holds scores of another protocol (it differs in {', '.join(differing)}), which "
                    f"must not be mixed with these; choose another folder with out=DIR"
                )
        elif rank_and_world_size()[0] == 0:
            write_atomic(file, json.dumps(claim, indent=2, sort_keys=True) + "\n")

    def file(self, cell: Cell) -> Path:
        return self.folder / "cells" / f"{cell.key}.json"

    def card(self, cell: Cell) -> Card:
        """Of a finished cell."""
        return Card.read(self.file(cell))

    def strip(self, cell: Cell) -> Tensor:
        """The first `shown` pictures of a finished cell, (shown, 3, H, W) uint8; none of one that has failed."""
        if self.card(cell).failed is not None:
            return torch.empty(0, 3, 1, 1, dtype=torch.uint8)
        with Image.open(self.file(cell).with_suffix(".png")) as picture:
            strip = torch.from_numpy(np.asarray(picture.convert("RGB")).copy())
        return torch.stack(strip.permute(2, 0, 1).split(strip.shape[0], dim=2))

    def missing(self, cells: Sequence[Cell], protocol: Protocol) -> list[Cell]:
        """Those without scores by this protocol and this software, the same ones on every process."""
        wanted = json.loads(json.dumps([protocol.card, protocol.versions]))

        def is_there(cell: Cell) -> bool:
            card = self.card(cell) if self.file(cell).is_file() else None
            return card is not None and card.failed is None and [card.protocol, card.versions] == wanted

        keys = all_gather([cell.key for cell in cells if not is_there(cell)])[0]
        return [cell for cell in cells if cell.key in keys]

    def run(self, cells: Sequence[Cell]) -> list[Card]:
        """The card of each cell, in order; those that are not there yet are made."""
        missing, rank = self.missing(cells, self.protocol), rank_and_world_size()[0]
        with tqdm(
            total=len(missing) * len(self.protocol.prompts), unit="image", desc="sweep", disable=rank > 0 or not missing
        ) as bar:
            for cell in missing:
                bar.set_postfix_str(cell.name)
                self.score(cell, self.protocol, bar.update)
        return [self.card(cell) for cell in cells]

    def prepare(self) -> None:
        """What must be done before the first picture is made, once."""
        if self._prepare is not None:
            self._prepare()
            self._prepare = None

    def score(self, cell: Cell, protocol: Protocol, done: Done = lambda images: None) -> None:
        """Makes a cell's pictures, judges them, and writes the card. What cannot be judged gets a card that says
        why."""
        self.prepare()
        world = rank_and_world_size()[1]
        start = time.perf_counter()
        card = Card(
            dict(cell.subject), protocol.card, protocol.versions, headlines=self.headlines(len(protocol.prompts))
        )
        each: dict[str, Tensor] = {}
        shown = torch.empty(0)
        try:
            verdict = score_samples(
                self.metrics, cell.pictures(protocol.seed, lambda n: done(n * world)), protocol.shown
            )
            scores, each, shown = verdict.scores, verdict.each, verdict.shown
            intervals = {name: interval_of(part, scores[name]) for name, part in each.items() if len(part) > 1}
            cost = cost_of(verdict, world) | {"total_seconds": time.perf_counter() - start}
            card = replace(card, cost=cost, scores=scores, intervals=intervals, lost=verdict.lost)
        except ValueError as error:
            print(f"warning: {cell.name}: {error}", file=sys.stderr)
            card = replace(card, failed=str(error))
        if rank_and_world_size()[0] == 0:
            if len(shown):
                strip = torch.cat(list(shown), dim=2).permute(1, 2, 0).numpy()
                picture = png(Image.fromarray(np.ascontiguousarray(strip)))
                write_atomic(self.file(cell).with_suffix(".png"), picture)
            card.write(self.file(cell), each)
        barrier()

    def again(self, cell: Cell, seed: int) -> Card:
        """A finished cell once more on other noise: what the luck of being the best of many was worth."""
        protocol = replace(self.protocol, seed=seed, card={**self.protocol.card, "seed": seed}, shown=0)
        fresh = replace(cell, subject={**cell.subject, "again": "the winner on fresh noise"})
        for cell in self.missing([fresh], protocol):
            self.score(cell, protocol)
        return self.card(fresh)
