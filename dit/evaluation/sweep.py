"""A sweep: many ways to sample, all scored by one protocol. Finished cells are kept as cards, so that an interrupted
sweep continues."""

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
from dit.cost import Meter
from dit.distributed import all_gather, barrier, rank_and_world_size
from dit.evaluation.card import Card, Fields, differences
from dit.evaluation.sampling_cost import Metered, cost_of
from dit.evaluation.statistics import interval_of
from dit.files import read_json, write_atomic
from dit.metrics.base import ImageMetric
from dit.metrics.frechet import FrechetDistance
from dit.picture_files import png, size_text
from dit.scoring.references import SCORING_CODE
from dit.scoring.samples import Done, SampleBatch, score_samples

# The code that decides the numbers of a card. Cards of other code are not used.
RESULT_CODE = (
    *SCORING_CODE,
    *("adapters", "backbones", "build", "checkpoints", "diffusion", "encoders", "layers", "pipeline", "precision"),
    *(
        "runs",
        "evaluation/base_model",
        "evaluation/checkpoints",
        "evaluation/diffusers_lora",
        "evaluation/diffusers_model",
        "evaluation/floors",
    ),
    *("evaluation/likelihood", "evaluation/model_scores", "evaluation/prior", "evaluation/real_pictures"),
    *("evaluation/model_description", "evaluation/recipes", "evaluation/selftest", "evaluation/subject"),
    *("evaluation/sources", "evaluation/statistics", "evaluation/subjects", "evaluation/sweep", "evaluation/taught"),
    "evaluation/sampling_cost",
)
LABELS = (
    "images",
    "model",
    "adapter_scale",
    "sampler",
    "steps",
    "guidance",
    "cache",
    "size",
)  # fields in the names of a cell's files
RECIPE_FIELDS = ("sampler", "grid", "steps", "guidance", "cache", "recipe")  # of a cell's subject: how it samples
Row = dict[str, Any]
Pictures = Callable[[int, Done], Iterator[SampleBatch]]


def name_of(fields: Fields, labels: Sequence[str]) -> str:
    """Returns a name made of the fields that `labels` lists: euler, 8 steps, guidance 2."""
    units = {"guidance": "guidance {:g}", "adapter_scale": "adapter scale {:g}", "cache": "cache {:g}"}
    units["steps"] = "{} step" if fields.get("steps") == 1 else "{} steps"
    return ", ".join(units.get(name, "{}").format(fields[name]) for name in labels if fields.get(name) is not None)


def digest_of(fields: Any) -> str:
    """Returns a short hash of plain values."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Cell:
    """One way to sample. subject: everything that distinguishes it from others, as on its card. pictures: (seed,
    progress callback) -> this rank's share of the pictures."""

    subject: Fields
    pictures: Pictures

    @property
    def name(self) -> str:
        """Its name in messages."""
        models = ("checkpoint", "weights", "adapter_scale", "images", "model")
        return name_of(self.subject, (*models, "sampler", "grid", "size", "steps", "guidance", "cache"))

    @property
    def size(self) -> str:
        """The size of its pictures, 768x512."""
        return str(self.subject["size"])

    @property
    def key(self) -> str:
        """The name of its files."""
        values = [self.subject[k] for k in LABELS if k in self.subject]
        words = [f"{v:g}" if isinstance(v, float) else re.sub(r"[^\w.-]+", "-", str(v)) for v in values]
        return "_".join([*words, digest_of(self.subject)])


@dataclass(frozen=True)
class Protocol:
    """What all cells of a sweep have in common. card: the protocol on their cards; only results of equal protocols can
    be compared. Its `size`, [width, height], is that of all pictures. prompts: one for each picture. shown: number of
    first pictures that are saved."""

    card: Fields
    versions: Fields
    prompts: Sequence[str]
    seed: int
    shown: int

    @property
    def identity(self) -> dict[str, Any]:
        """What protocol.json has for a size: a folder has results of one identity for each size only."""
        return {"protocol": dict(self.card), "versions": dict(self.versions), "shown": self.shown}

    @property
    def size(self) -> str:
        """The size of the pictures as text, 768x512."""
        width, height = self.card["size"]
        return size_text((width, height))


def row_of(card: Card) -> Row:
    """Returns a card as a row of a table: the fields that identify the cell, the cost and the scores."""
    labels = {name: value for name, value in card.subject.items() if isinstance(value, (str, int, float))}
    labels = {name: value for name, value in labels.items() if name not in ("weights_sha256", "step")}
    cost = {**card.cost, "n": card.protocol["n"], "seed": card.protocol["seed"]}
    return labels | cost | dict(card.scores) | {"intervals": dict(card.intervals), "failed": card.failed}


def checked(pictures: Iterator[SampleBatch], protocol: Protocol) -> Iterator[SampleBatch]:
    """Yields the batches. Raises ValueError for pictures of another size than that of the protocol."""
    for batch in pictures:
        height, width = batch.images.shape[-2:]
        if protocol.size != size_text((width, height)):
            raise ValueError(f"the pictures are {width}x{height}, not size={protocol.size} as their protocol says")
        yield batch


class Sweep:
    """Scores cells of one size, and keeps a card for each in FOLDER/cells. Finished cells are not sampled again. The
    sweeps of several sizes have one folder, each with its protocol.
    prepare: called once, before the first cell is sampled. meter: of the device that samples."""

    def __init__(
        self,
        metrics: Mapping[str, ImageMetric],
        protocol: Protocol,
        folder: Path,
        prepare: Callable[[], object],
        meter: Meter | None = None,
    ) -> None:
        self.metrics, self.protocol, self.folder = metrics, protocol, folder
        self.meter = meter or Meter(torch.device("cpu"))
        self._prepare: Callable[[], object] | None = prepare
        self._check_folder()

    def headlines(self, n: int) -> dict[str, bool]:
        """Returns the columns to plot, for n pictures, and whether higher is better."""
        metrics = self.metrics.values()
        return {m.column(name, n, self.references(m)): up for m in metrics for name, up in m.headlines.items()}

    def references(self, metric: ImageMetric) -> int | None:
        """Returns the number of reference pictures of a metric; None without references and for published
        statistics."""
        reference: Mapping[str, Any] = self.protocol.card.get("reference", {}).get(metric.reference_split, {})
        return reference.get("count")

    @property
    def notes(self) -> list[str]:
        """Limits of these scores, one sentence each."""
        found = []
        for metric in self.metrics.values():
            n, references = len(self.protocol.prompts), self.references(metric)
            column = metric.column(next(iter(metric.headlines)), n, references)
            if isinstance(metric, FrechetDistance):
                counts = {"pictures": n, "references": references}
                few = [f"{count} {of}" for of, count in counts.items() if count is not None and count < metric.dim]
                if few:
                    found.append(
                        f"{column}: {' and '.join(few)} are fewer than its {metric.dim} features: use this score to "
                        f"rank these results only, not to compare with others"
                    )
            if metric.biased and references is not None and references < n:
                found.append(
                    f"{column}: {references} references are fewer than the {n} pictures: not comparable with "
                    f"published figures; raise references={references}, or give more real pictures with real=PATH"
                )
        return found

    def _check_folder(self) -> None:
        """Adds the protocol of this size to protocol.json. Raises ValueError if the folder has the cells of another
        one."""
        file, identity = self.folder / "protocol.json", json.loads(json.dumps(self.protocol.identity))
        known: Any = {}
        if file.is_file():
            try:
                known = read_json(file, nan=True)
                check_value(known, Mapping[str, Mapping[str, Any]], str(file))
            except ValueError as error:
                raise ValueError(f"{error}; remove it, or choose another folder with out=DIR") from None
        if differing := differences(known.get(self.protocol.size, identity), identity):
            raise ValueError(
                f"{self.folder} has scores of another protocol (it differs in {', '.join(differing)}); choose "
                f"another folder with out=DIR"
            )
        if self.protocol.size not in known and rank_and_world_size()[0] == 0:
            write_atomic(file, json.dumps(known | {self.protocol.size: identity}, indent=2, sort_keys=True) + "\n")

    def file(self, cell: Cell) -> Path:
        return self.folder / "cells" / f"{cell.key}.json"

    def card(self, cell: Cell) -> Card:
        """Returns the card of a finished cell."""
        return Card.read(self.file(cell))

    def strip(self, cell: Cell) -> Tensor:
        """Returns the first `shown` pictures of a finished cell, (shown, 3, H, W) uint8; none if it failed."""
        if self.card(cell).failed is not None:
            return torch.empty(0, 3, 1, 1, dtype=torch.uint8)
        with Image.open(self.file(cell).with_suffix(".png")) as picture:
            strip = torch.from_numpy(np.asarray(picture.convert("RGB")).copy())
        return torch.stack(strip.permute(2, 0, 1).split(self.protocol.card["size"][0], dim=2))

    def missing(self, cells: Sequence[Cell], protocol: Protocol) -> list[Cell]:
        """Returns the cells without scores of this protocol and this software, the same on all ranks."""
        expected = json.loads(json.dumps([protocol.card, protocol.versions]))

        def is_finished(cell: Cell) -> bool:
            card = self.card(cell) if self.file(cell).is_file() else None
            return card is not None and card.failed is None and [card.protocol, card.versions] == expected

        keys = all_gather([cell.key for cell in cells if not is_finished(cell)])[0]
        return [cell for cell in cells if cell.key in keys]

    def run(self, cells: Sequence[Cell]) -> list[Card]:
        """Returns the card of each cell, in order, and scores the missing ones."""
        missing, rank = self.missing(cells, self.protocol), rank_and_world_size()[0]
        with tqdm(
            total=len(missing) * len(self.protocol.prompts), unit="image", desc="sweep", disable=rank > 0 or not missing
        ) as bar:
            for cell in missing:
                bar.set_postfix_str(cell.name)
                self.score(cell, self.protocol, bar.update)
        return [self.card(cell) for cell in cells]

    def prepare(self) -> None:
        """Calls the `prepare` of the constructor once."""
        if self._prepare is not None:
            self._prepare()
            self._prepare = None

    def score(self, cell: Cell, protocol: Protocol, done: Done = lambda images: None) -> None:
        """Samples a cell, scores the pictures and writes the card. If they cannot be scored, the card has the reason
        (`failed`)."""
        self.prepare()
        world_size = rank_and_world_size()[1]
        start = time.perf_counter()
        card = Card(
            dict(cell.subject), protocol.card, protocol.versions, headlines=self.headlines(len(protocol.prompts))
        )
        parts: dict[str, Tensor] = {}
        shown = torch.empty(0)
        try:
            pictures = Metered(cell.pictures(protocol.seed, lambda n: done(n * world_size)), self.meter)
            scored = score_samples(self.metrics, checked(iter(pictures), protocol), protocol.shown)
            scores, parts, shown = scored.scores, scored.each, scored.shown
            intervals = {name: interval_of(part, scores[name]) for name, part in parts.items() if len(part) > 1}
            cost = cost_of(scored, pictures) | {"total_seconds": time.perf_counter() - start}
            card = replace(card, cost=cost, scores=scores, intervals=intervals, lost=scored.failed_metrics)
        except ValueError as error:
            print(f"warning: {cell.name}: {error}", file=sys.stderr)
            card = replace(card, failed=str(error))
        if rank_and_world_size()[0] == 0:
            if len(shown):
                strip = torch.cat(list(shown), dim=2).permute(1, 2, 0).numpy()
                picture = png(Image.fromarray(np.ascontiguousarray(strip)))
                write_atomic(self.file(cell).with_suffix(".png"), picture)
            card.write(self.file(cell), parts)
        barrier()

    def confirm(self, cell: Cell, seed: int) -> Card:
        """Scores the best cell again on other noise, because the best score of many is too good by chance."""
        protocol = replace(self.protocol, seed=seed, card={**self.protocol.card, "seed": seed}, shown=0)
        fresh = replace(cell, subject={**cell.subject, "again": "the winner on fresh noise"})
        for cell in self.missing([fresh], protocol):
            self.score(cell, protocol)
        return self.card(fresh)
