"""Samples pictures and scores them, for evaluation and during training, on one or several ranks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from dit.distributed import all_gather, all_reduce_sum, raise_on_all_ranks, rank_and_world_size, rank_batches
from dit.layers.step_cache import CacheUse
from dit.metrics.base import ImageMetric, MetricResult
from dit.pipeline import Pipeline, Recipe
from dit.scoring.prompts import EncodedPrompts
from dit.types import Condition, to_pixels

Done = Callable[[int], object]  # called with the number of samples of each finished batch


@dataclass(frozen=True)
class SampleBatch:
    """A batch of pictures to score. images: (B, 3, H, W) uint8. index: the positions among all pictures. nfe: network
    evaluations per picture. seconds: for the batch. broken: the number of pictures that are not finite. cached: what a
    step cache did per picture, or None."""

    images: Tensor
    prompts: Sequence[str]
    index: Sequence[int]
    nfe: float = 0.0
    seconds: float = 0.0
    broken: int = 0
    cached: CacheUse | None = None


def to_uint8(images: Tensor) -> tuple[Tensor, int]:
    """Converts (B, 3, H, W) in [-1, 1] to uint8; also returns the number of pictures that are not finite."""
    return to_pixels(images.nan_to_num()), int((~images.isfinite().flatten(1).all(1)).sum())


def sample_prompts(
    pipeline: Pipeline,
    prompts: Sequence[str],
    condition: Condition | EncodedPrompts,
    seed: int,
    recipe: Recipe,
    batch_size: int,
    done: Done = lambda images: None,
    shape: Sequence[int] | None = None,
) -> Iterator[SampleBatch]:
    """Yields this rank's share of one picture per prompt. condition: the encoded prompts. shape: of one latent, None
    for that of training. Picture i is sampled with seed + i, on every rank and in every batch."""
    for rows in rank_batches(len(prompts), batch_size):
        start = time.perf_counter()
        texts, seeds = condition[torch.tensor(rows)], [seed + i for i in rows]
        samples = pipeline(texts, seeds, recipe, batch_size, done, shape=shape)
        seconds = time.perf_counter() - start
        images, broken = to_uint8(samples.images)
        yield SampleBatch(images, [prompts[i] for i in rows], rows, samples.nfe, seconds, broken, samples.cached)


@dataclass(frozen=True)
class Scores:
    """Scores of all ranks together. results: by the metrics' names. shown: the first pictures, (S, 3, H, W) uint8.
    n: pictures. nfe: per picture, the mean. seconds: of sampling, summed over ranks. failed_metrics: those that cannot
    score these pictures, with the reason. cached: what a step cache did per picture, the mean, or None."""

    results: Mapping[str, MetricResult]
    shown: Tensor
    n: int
    nfe: float
    seconds: float
    failed_metrics: Mapping[str, str]
    cached: CacheUse | None = None

    @property
    def scores(self) -> dict[str, float]:
        """Scores by column."""
        return {column: value for found in self.results.values() for column, value in found.scores.items()}

    @property
    def each(self) -> dict[str, Tensor]:
        """The contribution of every picture to the scores, by column."""
        return {column: part for found in self.results.values() for column, part in found.each.items()}


def score_samples(metrics: Mapping[str, ImageMetric], pictures: Iterable[SampleBatch], shown: int = 0) -> Scores:
    """Scores the pictures with every metric, in one pass. Each rank gives its share of the pictures; all ranks return
    the same scores.

    A metric that cannot score them is left out, with a warning. Raises ValueError, on every rank, if pictures are not
    finite, if sampling fails on a rank, or if no metric is left.
    """
    for metric in metrics.values():
        metric.reset()
    first: dict[int, Tensor] = {}
    n, evaluations, seconds, broken, blocks = 0, 0.0, 0.0, 0, torch.zeros(3, dtype=torch.float64)
    lost: dict[str, str] = {}  # metrics that cannot score these pictures, with the reason
    with raise_on_all_ranks():
        for batch in pictures:
            for name, metric in metrics.items():
                try:
                    metric.update(batch.images, batch.prompts, batch.index)
                except ValueError as error:
                    lost.setdefault(name, str(error))
            first |= {i: batch.images[row].cpu() for row, i in enumerate(batch.index) if i < shown}
            n, evaluations = n + len(batch.index), evaluations + batch.nfe * len(batch.index)
            seconds, broken = seconds + batch.seconds, broken + batch.broken
            if batch.cached is not None:
                blocks += len(batch.index) * torch.tensor(astuple(batch.cached), dtype=torch.float64)
    all_n, evaluations, seconds, all_broken, *used = all_reduce_sum(n, evaluations, seconds, broken, *blocks.tolist())
    if all_broken:
        raise ValueError(f"{all_broken:g} of {all_n:g} pictures are not finite (NaN or infinite): there is no score")
    first = {i: image for share in all_gather(first) for i, image in share.items()}
    strip = torch.stack([first[i] for i in sorted(first)]) if first else torch.empty(0, 3, 1, 1, dtype=torch.uint8)
    lost = {name: why for share in all_gather(lost) for name, why in share.items()}
    results: dict[str, MetricResult] = {}
    for name in [name for name in metrics if name not in lost]:  # in the same order on every rank
        try:
            results[name] = metrics[name].result()
        except ValueError as error:  # the same on every rank
            lost[name] = str(error)
    if lost and not results:
        raise ValueError("; ".join(dict.fromkeys(lost.values())))
    if lost and rank_and_world_size()[0] == 0:
        print(f"warning: without {', '.join(sorted(lost))}: {'; '.join(dict.fromkeys(lost.values()))}", file=sys.stderr)
    cached = CacheUse(*(value / all_n for value in used)) if any(used) else None
    return Scores(results, strip, int(all_n), evaluations / max(all_n, 1), seconds, lost, cached)
