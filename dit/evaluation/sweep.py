"""Samplers x steps x guidance on the same prompts and the same noise; every finished cell is kept."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dit.evaluation.likelihood import BitsPerDim
from dit.files import write_atomic
from dit.metrics.base import ImageMetric
from dit.pictures import png
from dit.pipeline import Pipeline, Recipe
from dit.types import CaptionedImages, Condition, from_pixels, to_pixels

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One way to sample, by name, and the recipe that does it. `detail` is all that the names leave out."""

    sampler: str
    steps: int
    guidance: float
    recipe: Recipe
    detail: str

    @property
    def key(self) -> str:
        digest = hashlib.sha256(self.detail.encode()).hexdigest()[:6]
        return f"{self.sampler}_{self.steps}_{self.guidance:g}_{digest}"


@dataclass(frozen=True)
class Protocol:
    """What every cell of a sweep shares: the prompts, the seed of the first, and all that makes up the scores."""

    prompts: Sequence[str]
    seed: int
    shown: int
    card: Mapping[str, Any]

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(self.card, sort_keys=True).encode()).hexdigest()[:12]


class Sweep:
    """Rows of scores, one for each cell, in FOLDER/cells. A cell that is there already is read, not made again."""

    def __init__(
        self,
        pipeline: Pipeline,
        metrics: Mapping[str, ImageMetric],
        real: CaptionedImages,
        references: int,
        protocol: Protocol,
        folder: Path,
        batch_size: int,
    ) -> None:
        self.pipeline, self.metrics, self.protocol = pipeline, metrics, protocol
        self.real, self.references = real, min(references, len(real))
        self.folder, self.batch_size = folder, batch_size
        self.shown_real = False
        self.model: dict[str, float] = {}
        self._claim_folder()

    def _claim_folder(self) -> None:
        """Raises ValueError when the folder holds the cells of another protocol."""
        card = json.dumps(self.protocol.card, indent=2, sort_keys=True) + "\n"
        file = self.folder / "protocol.json"
        if file.is_file() and file.read_text() != card:
            old = json.loads(file.read_text())
            differing = [k for k in sorted({*old, *self.protocol.card}) if old.get(k) != self.protocol.card.get(k)]
            raise ValueError(
                f"{self.folder} holds scores of another protocol (it differs in {', '.join(differing)}), which must "
                f"not be mixed with these; choose another folder with out=DIR"
            )
        write_atomic(file, card)

    def _file(self, cell: Cell) -> Path:
        return self.folder / "cells" / f"{cell.key}.json"

    def strip(self, cell: Cell) -> Tensor:
        """The first `shown` pictures of a finished cell, (shown, 3, H, W) uint8."""
        with Image.open(self._file(cell).with_suffix(".png")) as picture:
            strip = torch.from_numpy(np.asarray(picture.convert("RGB")).copy())
        return torch.stack(strip.permute(2, 0, 1).split(strip.shape[0], dim=2))

    def run(self, cells: Sequence[Cell]) -> list[Row]:
        """One row for each distinct cell, in order."""
        cells = list(dict.fromkeys(cells))
        missing = [cell for cell in cells if not self._file(cell).is_file()]
        if missing:
            self._show_real_pictures()  # a metric that cannot judge them says so before anything is sampled
            distinct = list(dict.fromkeys(self.protocol.prompts))  # each is encoded once
            rows = torch.tensor([distinct.index(p) for p in self.protocol.prompts])
            condition = self.pipeline.encode(distinct)[rows]
            with tqdm(total=len(missing) * len(rows), unit="image", desc="sweep") as bar:
                for cell in missing:
                    bar.set_postfix_str(f"{cell.sampler}, {cell.steps} steps, guidance {cell.guidance:g}")
                    self._make(cell, condition, bar)
        return [json.loads(self._file(cell).read_text()) for cell in cells]

    def score_model(self, scores: Sequence[BitsPerDim]) -> None:
        """What is asked of the model itself, once for all cells; kept in `model`."""
        file = self.folder / "cells" / "model.json"
        if scores and not file.is_file():
            made: dict[str, float] = {}
            for score in scores:
                made |= score(self.pipeline, self.real, self.protocol.seed, self.batch_size)
            write_atomic(file, json.dumps(made, indent=2) + "\n")
        self.model = json.loads(file.read_text()) if scores else {}

    def _show_real_pictures(self) -> None:
        """To the metrics, once."""
        if not self.shown_real:
            images = torch.from_numpy(self.real.images(np.arange(self.references)))
            for metric in self.metrics.values():
                if metric.wants is not None:
                    metric.update(images, real=True)
            self.shown_real = True

    def score(self, images: Tensor, prompts: Sequence[str]) -> dict[str, float]:
        """images: (N, 3, H, W) uint8."""
        scores: dict[str, float] = {}
        for metric in self.metrics.values():
            metric.reset()
            metric.update(images, prompts)
            scores |= metric.compute()
        return scores

    def _make(self, cell: Cell, condition: Condition, bar: tqdm[Any]) -> None:
        seeds = range(self.protocol.seed, self.protocol.seed + len(self.protocol.prompts))
        start = time.perf_counter()
        samples = self.pipeline(condition, seeds, cell.recipe, self.batch_size, bar.update)
        seconds = time.perf_counter() - start
        images = to_pixels(samples.images)
        row = {
            "sampler": cell.sampler,
            "steps": cell.steps,
            "guidance": cell.guidance,
            "nfe": samples.nfe,
            "n": len(images),
            "images_per_second": len(images) / seconds,
            "seed": self.protocol.seed,
        } | self.score(images, self.protocol.prompts)
        strip = torch.cat(list(images[: self.protocol.shown]), dim=2).permute(1, 2, 0).numpy()
        write_atomic(self._file(cell).with_suffix(".png"), png(Image.fromarray(np.ascontiguousarray(strip))))
        write_atomic(self._file(cell), json.dumps(row, indent=2) + "\n")

    def ceilings(self) -> dict[str, dict[str, float]]:
        """The scores of real pictures, and of the same after a trip through the autoencoder: what a perfect sampler
        would get. They are other pictures than the references, where the data has enough."""
        file = self.folder / "cells" / "ceilings.json"
        if not file.is_file():
            self._show_real_pictures()
            n = len(self.protocol.prompts)
            first = max(min(self.references, len(self.real) - n), 0)
            index = np.arange(first, min(first + n, len(self.real)))
            captions = [self.real.captions[int(i)] for i in index]
            images = torch.from_numpy(self.real.images(index))
            coder = self.pipeline.autoencoder.to(self.pipeline.device)
            again = coder.decode(coder.encode(from_pixels(images).to(self.pipeline.device))).cpu()
            made = {
                "real": self.score(images, captions),
                "autoencoder": self.score(to_pixels(again), captions),
            }
            write_atomic(file, json.dumps(made, indent=2) + "\n")
        return json.loads(file.read_text())
