"""Pictures with a watermark."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dit.generation.delivery import Delivery, Wrapped
from dit.generation.encoding import PNG, Encoding
from dit.generation.mark_card import demand_power
from dit.generation.marks import Mark
from dit.generation.rows import array_of
from dit.generation.work import Job


class Marked(Wrapped):
    """Another delivery whose pictures get a watermark, with its measured power on a card for files of this encoding. A
    row claims the mark only if it is found in its picture; a mark in the noise, which is not looked for in each
    picture, is claimed by the card alone, with null as its p-value."""

    def __init__(self, inner: Delivery, mark: Mark, encoding: Encoding = PNG) -> None:
        super().__init__(inner)
        self.watermark, self.encoding = mark, encoding
        self.fingerprint = hashlib.sha256((inner.fingerprint + mark.fingerprint).encode()).hexdigest()[:16]

    def check_model(self, about: Mapping[str, Any], size: tuple[int, int]) -> None:
        super().check_model(about, size)
        demand_power(self.watermark, about, size, self.encoding)

    def seeded(self, jobs: Sequence[Job]) -> list[Job]:
        given = super().seeded(jobs)
        seeds = self.watermark.seeds([job.seed for job in given])
        return [replace(job, seed=seed) for job, seed in zip(given, seeds, strict=True)]

    def mark(self, jobs: Sequence[Job], pixels: Tensor) -> Tensor:
        arrays = [self.watermark.embed(array_of(picture)) for picture in super().mark(jobs, pixels)]
        return torch.stack([torch.from_numpy(array).permute(2, 0, 1) for array in arrays])

    def describe(self, picture: Tensor) -> dict[str, Any]:
        found = super().describe(picture)
        if self.watermark.in_noise:
            return found | {"watermark": self.watermark.settings | {"p_value": None}}
        p_value = self.watermark.detect(array_of(picture)).p_value
        claimed = self.watermark.settings | {"p_value": p_value}
        return found | {"watermark": claimed if p_value < self.watermark.rate else None}


def warn_of_unmarked(rows: Iterable[Mapping[str, Any]]) -> None:
    """Prints to stderr in how many of the delivered pictures of a table the mark is not found, if there are any."""
    claims = [row["watermark"] for row in rows if "file" in row and "watermark" in row]
    if lost := claims.count(None):
        print(
            f"warning: the watermark is not found in {lost} of {len(claims)} pictures; their rows say watermark: null",
            file=sys.stderr,
        )
