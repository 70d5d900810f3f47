"""A labelled data set from a model: as many pictures of each caption as of any other, without what a checker finds
wrong, and without duplicates. What is rejected is kept apart, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dit.files import write_atomic
from dit.generation.bulk import Bulk, Painter
from dit.generation.delivery import Delivery
from dit.generation.duplicates import Descriptions, Duplicates, Measure
from dit.generation.output import Output
from dit.generation.rows import Row, json_of, png_of, row_of
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
        if self.checker is None:
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

    def __init__(self, output: Output, model: Callable[[int], Painter], filter: Filter, rejects: Path) -> None:
        super().__init__(output, model, Delivery())
        self.filter, self.rejects = filter, rejects

    def make(self, shard: int, bar: tqdm) -> None:
        """Makes pictures for the captions of a shard in rounds, each as many as are missing."""
        quotas, rows = self.output.work, list[Row]()
        assert isinstance(quotas, Quotas)
        progress = {label: Progress() for label in quotas.labels(shard)}
        with self.output.writer.shard(shard) as add:
            while jobs := list(missing(quotas, progress)):
                size = self.output.batch_sizes[0][0]
                for first in range(0, len(jobs), size):
                    for (label, job), picture, reason in self.judged(jobs[first : first + size], progress):
                        row = row_of(job, self.model(0).about, picture) | {"label": label}
                        if reason:
                            row |= {"rejected": reason}
                            write_atomic(self.rejects / f"{job.name}.png", png_of(picture, row))
                        else:
                            row |= {"file": self.output.writer.file_of(shard, job.name)}
                            add(row, self.delivery.sign(row, png_of(picture, row)))
                            bar.update()
                        rows.append(row)
        write_atomic(self.output.part(shard), "".join(json_of(row) + "\n" for row in rows))

    def judged(
        self, batch: Sequence[tuple[int, Job]], progress: dict[int, Progress]
    ) -> Iterator[tuple[tuple[int, Job], Tensor, str]]:
        """Yields the pictures of a batch with the reason of a rejection, or "", and counts them."""
        pictures, _ = self.checked(self.model(0), [job for _, job in batch])
        pixels = torch.stack([pictures[job.index] for _, job in batch])
        wrong = self.filter.wrong(pixels, [job.prompt for _, job in batch])
        for place, (label, job) in enumerate(batch):
            own = progress[label]
            reason = wrong[place] or self.filter.duplicate(pixels[place], job.prompt, own)
            own.tried, own.kept = own.tried + 1, own.kept + (not reason)
            yield (label, job), pixels[place], reason


def missing(quotas: Quotas, progress: dict[int, Progress]) -> Iterator[tuple[int, Job]]:
    """Yields with its label each picture to make in the next round."""
    for label, own in progress.items():
        most = quotas.quota(label) * quotas.tries
        for number in range(own.tried, min(own.tried + quotas.quota(label) - own.kept, most)):
            yield label, quotas.job(label, number)


def described_source(
    measure: Measure, images: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, batch: int = 256
) -> Descriptions:
    """Returns the descriptions (N, D) of some pictures of a source, which are read in batches."""
    parts = [measure.describe(images(rows[first : first + batch])) for first in range(0, len(rows), batch)]
    return np.concatenate([measure.nothing, *parts])
