"""Samples and their scores: the one way to score, offline and while training, on one process or many."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dit.distributed import all_gather, all_reduce_sum, raise_on_all_ranks, rank_and_world_size, rank_batches
from dit.metrics.base import ImageMetric, MetricResult
from dit.pipeline import Pipeline, Recipe
from dit.scoring.prompts import EncodedPrompts
from dit.types import Condition, to_pixels

Done = Callable[[int], object]  # is called with the number of samples in each finished batch


@dataclass(frozen=True)
class SampleBatch:
    """Some of the pictures to judge: (B, 3, H, W) uint8, their prompts, their places among all, and what they cost:
    network evaluations for each, and seconds in all. broken: how many are not finite, and so are no pictures."""

    images: Tensor
    prompts: Sequence[str]
    index: Sequence[int]
    nfe: float = 0.0
    seconds: float = 0.0
    broken: int = 0


def to_uint8(images: Tensor) -> tuple[Tensor, int]:
    """(B, 3, H, W) in [-1, 1] -> uint8, and how many of them are not finite, and so are no pictures."""
    return to_pixels(images.nan_to_num()), int((~images.isfinite().flatten(1).all(1)).sum())


def sample_prompts(
    pipeline: Pipeline,
    prompts: Sequence[str],
    condition: Condition | EncodedPrompts,
    seed: int,
    recipe: Recipe,
    batch_size: int,
    done: Done = lambda images: None,
) -> Iterator[SampleBatch]:
    """This process's share of a picture for every prompt, whose encoded condition is given beside: picture i comes from
    noise seed + i, whichever process makes it and in whichever batch."""
    for rows in rank_batches(len(prompts), batch_size):
        start = time.perf_counter()
        samples = pipeline(condition[torch.tensor(rows)], [seed + i for i in rows], recipe, batch_size, done)
        seconds = time.perf_counter() - start
        images, broken = to_uint8(samples.images)
        yield SampleBatch(images, [prompts[i] for i in rows], rows, samples.nfe, seconds, broken)


@dataclass(frozen=True)
class Scores:
    """results: by the metrics' names. shown: the first pictures, (S, 3, H, W) uint8. Over all processes: nfe of a
    picture, n pictures, and the seconds that making them took, added over processes. failed_metrics: those that
    cannot score these pictures, and why."""

    results: Mapping[str, MetricResult]
    shown: Tensor
    n: int
    nfe: float
    seconds: float
    failed_metrics: Mapping[str, str]

    @property
    def scores(self) -> dict[str, float]:
        """By their columns."""
        return {column: value for found in self.results.values() for column, value in found.scores.items()}

    @property
    def each(self) -> dict[str, Tensor]:
        """Every picture's part in them, by their columns."""
        return {column: part for found in self.results.values() for column, part in found.each.items()}


def score_samples(metrics: Mapping[str, ImageMetric], pictures: Iterable[SampleBatch], shown: int = 0) -> Scores:
    """Every metric's verdict, in one pass. Each process gives its share of the pictures, and all get the same answer.

    A metric that cannot judge them is told of and left out. Raises ValueError, on every process, where pictures are not
    finite, where one process cannot make its own, or where no metric is left.
    """
    for metric in metrics.values():
        metric.reset()
    first: dict[int, Tensor] = {}
    n, evaluations, seconds, broken = 0, 0.0, 0.0, 0
    lost: dict[str, str] = {}  # metrics that cannot judge these pictures, and why
    with raise_on_all_ranks():
        for made in pictures:
            for name, metric in metrics.items():
                try:
                    metric.update(made.images, made.prompts, made.index)
                except ValueError as error:
                    lost.setdefault(name, str(error))
            first |= {i: made.images[row].cpu() for row, i in enumerate(made.index) if i < shown}
            n, evaluations = n + len(made.index), evaluations + made.nfe * len(made.index)
            seconds, broken = seconds + made.seconds, broken + made.broken
    all_n, evaluations, seconds, all_broken = all_reduce_sum(n, evaluations, seconds, broken)
    if all_broken:
        raise ValueError(f"{all_broken:g} of {all_n:g} pictures are not finite (NaN or infinite): there is no score")
    first = {i: image for share in all_gather(first) for i, image in share.items()}
    strip = torch.stack([first[i] for i in sorted(first)]) if first else torch.empty(0, 3, 1, 1, dtype=torch.uint8)
    lost = {name: why for share in all_gather(lost) for name, why in share.items()}
    results: dict[str, MetricResult] = {}
    for name in [name for name in metrics if name not in lost]:  # each in its turn, on every process
        try:
            results[name] = metrics[name].result()
        except ValueError as error:  # the same on every process
            lost[name] = str(error)
    if lost and not results:
        raise ValueError("; ".join(dict.fromkeys(lost.values())))
    if lost and rank_and_world_size()[0] == 0:
        print(f"warning: without {', '.join(sorted(lost))}: {'; '.join(dict.fromkeys(lost.values()))}", file=sys.stderr)
    return Scores(results, strip, int(all_n), evaluations / max(all_n, 1), seconds, lost)
