"""A labelled data set from a model: as many pictures of each caption as of any other, without what a checker finds
wrong, and without duplicates. What is rejected is kept apart, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dit.cost import Meter
from dit.files import write_atomic
from dit.generation.bulk import Bulk, Delivered, Painter
from dit.generation.delivery import Delivery, refusal_text
from dit.generation.duplicates import Descriptions, Duplicates, Measure
from dit.generation.encoding import png_of
from dit.generation.output import Output
from dit.generation.policy import Decision
from dit.generation.rows import row_of
from dit.generation.work import Job
from dit.types import Checker


@dataclass(frozen=True)
class Quotas:
    """How many pictures of each caption are kept. count: pictures in all, which the captions share as equally as
    possible; tries: the largest number of pictures that are made for each that is kept; seed: the first seed.

    A shard is the pictures of some captions, about `shard_size`."""

    captions: Sequence[str]
    count: int
    tries: int
    seed: int = 0
    shard_size: int = 256

    def __len__(self) -> int:
        return self.count

    def quota(self, label: int) -> int:
        """Returns the number of pictures of a caption."""
        return self.count // len(self.captions) + (label < self.count % len(self.captions))

    @property
    def stride(self) -> int:
        """The number of captions in a shard."""
        return max(1, self.shard_size // self.quota(0))

    @property
    def shards(self) -> int:
        return -(-len(self.captions) // self.stride)

    def labels(self, shard: int) -> range:
        return range(shard * self.stride, min((shard + 1) * self.stride, len(self.captions)))

    def rows(self, shard: int) -> range:
        return range(sum(self.quota(label) for label in self.labels(shard)))

    def label(self, job: Job) -> int:
        """Returns the number of a job's caption."""
        return job.index // (self.quota(0) * self.tries)

    def job(self, label: int, number: int) -> Job:
        """Returns a picture to make for a caption: its number-th try."""
        index = label * self.quota(0) * self.tries + number
        return Job(index, f"class_{label}_seed_{self.seed + index}", 0, None, self.captions[label], self.seed + index)


@dataclass
class Progress:
    """What was made for one caption: the number of tries and of kept pictures, and the descriptions of these."""

    tried: int = 0
    kept: int = 0
    described: list[Descriptions] = field(default_factory=list)


class Filter:
    """Says which pictures are rejected. checker: of the attributes in the caption, or None; duplicates: or None."""

    def __init__(self, checker: Checker | None, duplicates: Duplicates | None) -> None:
        self.checker, self.duplicates = checker, duplicates

    def wrong(self, pixels: Tensor, captions: Sequence[str]) -> list[str]:
        """Returns for each of N pictures (N, 3, H, W) uint8 the attributes that the checker finds wrong, or ""."""
        if self.checker is None or not captions:
            return [""] * len(captions)
        right = self.checker(pixels, captions)
        faults = [[name for name, found in right.items() if not found[row]] for row in range(len(captions))]
        return [f"checker: wrong {', '.join(names)}" if names else "" for names in faults]

    def duplicate(self, pixels: Tensor, caption: str, progress: Progress) -> str:
        """Returns why a picture (3, H, W) uint8 is a duplicate, or ""; records it if it is none."""
        if self.duplicates is None:
            return ""
        [described] = self.duplicates.measure.describe(pixels[None].numpy())
        reason = self.duplicates.reason(described, caption, progress.described)
        progress.described += [] if reason else [described]
        return reason


class Synthesis(Bulk):
    """Makes the data set of an output whose work are Quotas. rejects: the folder of the rejected pictures."""

    def __init__(
        self,
        output: Output,
        model: Callable[[int], Painter],
        filter: Filter,
        rejects: Path,
        delivery: Delivery | None = None,
        meter: Meter | None = None,
    ) -> None:
        super().__init__(output, model, delivery or Delivery(), meter or Meter(torch.device("cpu")))
        self.filter, self.rejects = filter, rejects

    def delivered(self, shard: int) -> Iterator[Delivered]:
        """Yields what is delivered of each picture of a shard, kept or rejected, and writes the rejected ones."""
        quotas, about = self.output.work, self.model(0).about
        assert isinstance(quotas, Quotas)
        for job, picture, reason, decisions in self.judged(quotas, shard):
            row = row_of(job, about, picture) | {"label": quotas.label(job)}
            row |= {} if picture is None else self.delivery.describe(picture)
            if not reason and picture is not None:
                row |= {"file": self.output.writer.file_of(shard, job.name)}
                yield row, self.delivery.sign(row, png_of(picture, row)), decisions
                continue
            row |= {"rejected": reason}
            yield row, None, decisions
            if picture is not None:
                write_atomic(self.rejects / f"{job.name}.png", png_of(picture, row))  # now it is logged

    def judged(self, quotas: Quotas, shard: int) -> Iterator[tuple[Job, Tensor | None, str, list[Decision]]]:
        """Yields the pictures for the captions of a shard, each with the reason of a rejection, or "", and the
        delivery's decisions. They are made in rounds, each as many as are missing. A picture is None if it is refused
        by the delivery."""
        progress, size = {label: Progress() for label in quotas.labels(shard)}, self.output.batch_sizes[0][0]
        while jobs := list(missing(quotas, progress)):
            for first in range(0, len(jobs), size):
                batch = jobs[first : first + size]
                pictures, decisions = self.checked(self.model(0), batch)
                made = [job for job in batch if job.index in pictures]
                pixels = torch.stack([pictures[job.index] for job in made]) if made else torch.zeros(0)
                wrong = dict(zip(made, self.filter.wrong(pixels, [job.prompt for job in made]), strict=True))
                for job in batch:
                    own, picture = progress[quotas.label(job)], pictures.get(job.index)
                    if picture is None:
                        reason = f"refused: {refusal_text(decisions[job.index])}"
                    else:
                        reason = wrong[job] or self.filter.duplicate(picture, job.prompt, own)
                    own.tried, own.kept = own.tried + 1, own.kept + (not reason)
                    yield job, picture, reason, decisions[job.index]


def missing(quotas: Quotas, progress: dict[int, Progress]) -> Iterator[Job]:
    """Yields the pictures to make in the next round."""
    for label, own in progress.items():
        most = quotas.quota(label) * quotas.tries
        for number in range(own.tried, min(own.tried + quotas.quota(label) - own.kept, most)):
            yield quotas.job(label, number)


def described_source(
    measure: Measure, images: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, batch: int = 256
) -> Descriptions:
    """Returns the descriptions (N, D) of some pictures of a source, which are read in batches."""
    parts = [measure.describe(images(rows[first : first + batch])) for first in range(0, len(rows), batch)]
    return np.concatenate([measure.nothing, *parts])
