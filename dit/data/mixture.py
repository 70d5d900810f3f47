"""A mixture of sources, each with its share of the training samples."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from torch.utils.data import Sampler

from dit.data.order import KeyedBatches, Permutation, Visit
from dit.types import CaptionedImages

MIXED = -1  # the fourth key of the permutations of a mixture's sources; augmentation has 0 there


def check_weights(names: Sequence[str], weights: Mapping[str, float]) -> list[float]:
    """Returns the weights of sources in their order. Raises ValueError if the names differ, or for a weight that is not
    positive."""
    if not names or set(names) != set(weights):
        raise ValueError(
            f"data.weights is for {', '.join(weights) or 'nothing'} and data.sources for "
            f"{', '.join(names) or 'nothing'}: give a weight for each source"
        )
    if wrong := [name for name in names if not 0 < weights[name] < math.inf]:
        raise ValueError(f"data.weights.{wrong[0]}={weights[wrong[0]]} must be positive; leave the source out instead")
    return [float(weights[name]) for name in names]


class Mixture:
    """The images of several sources, one source after the other, all at `size`, as the `train` or the `val` split.

    sources: by name, what makes a source from `size` and `split`. weights: by the same names, the share of each in the
    training samples of an epoch, as `MixtureBatches` draws them, relative to their sum. Held-out images are not
    weighted. Raises ValueError if the names differ, or for a weight that is not positive.
    """

    def __init__(self, sources: Mapping[str, Any], weights: Mapping[str, float], size: int, split: str) -> None:
        self.weights = check_weights(list(sources), weights)
        makers: dict[str, Callable[..., CaptionedImages]] = dict(sources)
        self.names = list(makers)
        self.parts = [make(size=size, split=split) for make in makers.values()]
        self.starts = [0, *itertools.accumulate(map(len, self.parts))]
        self.captions = [caption for part in self.parts for caption in part.captions]
        choices = [getattr(part, "caption_choices", None) for part in self.parts]
        if any(choice is not None for choice in choices):
            self.caption_choices = [
                image
                for part, choice in zip(self.parts, choices, strict=True)
                for image in (choice or (((caption, 1.0),) for caption in part.captions))
            ]
        self.fingerprint = " ".join(part.fingerprint for part in self.parts)

    def __len__(self) -> int:
        return self.starts[-1]

    @cached_property
    def provenance(self) -> pa.Table:
        """One row for each image; `mixed_from` is the name of its source in the mixture."""
        tables = []
        for name, part in zip(self.names, self.parts, strict=True):
            table = getattr(part, "provenance", None)
            table = pa.table({"id": [str(i) for i in range(len(part))]}) if table is None else table
            tables.append(table.append_column("mixed_from", pa.array([name] * len(part), pa.string())))
        return pa.concat_tables(tables, promote_options="permissive")

    def images(self, index: np.ndarray) -> np.ndarray:
        rows = np.asarray(index)
        of = np.searchsorted(self.starts, rows, side="right") - 1
        found: list[Any] = [None] * len(rows)
        for number, part in enumerate(self.parts):
            places = np.flatnonzero(of == number)
            if len(places):
                for place, image in zip(places, part.images(rows[places] - self.starts[number]), strict=True):
                    found[place] = image
        return np.stack(found)


def quotas(total: int, weights: Sequence[float]) -> list[int]:
    """Returns whole numbers with sum `total` in the proportions of the weights, rounded by largest remainders. Raises
    ValueError if one is 0."""
    exact = [total * weight / math.fsum(weights) for weight in weights]
    found = [math.floor(value) for value in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: found[i] - exact[i])
    for i in by_remainder[: total - sum(found)]:
        found[i] += 1
    if 0 in found:
        weight = weights[found.index(0)] / math.fsum(weights)
        raise ValueError(f"data.weights: a share of {weight:.2g} of {total} samples is less than one; make it larger")
    return found


class MixtureBatches(Sampler[list[Visit]]):
    """Endless batches of visits of a mixture's samples.

    An epoch has as many samples as the sources have together, of which source i has its share, `quotas`, in an order
    keyed by (seed, epoch). Source i itself is an endless sequence of passes, each a permutation keyed by (seed, pass,
    i), of which every epoch takes the next quota. The epoch of a visit is the pass of its source, and every pass uses
    every sample once. Batch s is therefore a function of (seed, s), for any number of ranks and workers. counts: the
    number of samples of each source; their numbers continue from source to source.
    """

    def __init__(
        self,
        counts: Sequence[int],
        weights: Sequence[float],
        batch_size: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.counts, self.seed = list(counts), seed
        self.quotas = quotas(sum(counts), weights)
        self.ends = list(itertools.accumulate(self.quotas))
        self.starts = [0, *itertools.accumulate(counts)]
        self.mixed = KeyedBatches(sum(counts), batch_size, seed, start, rank, world)
        self.pass_of = lru_cache(maxsize=64)(self._pass)

    def _pass(self, source: int, number: int) -> Permutation:
        return Permutation(self.counts[source], self.seed, number, source, MIXED)

    def visit(self, row: int, epoch: int) -> Visit:
        """Returns the visit that a row of an epoch, in the order of the sources, stands for."""
        source = bisect.bisect_right(self.ends, row)
        place = epoch * self.quotas[source] + row - (self.ends[source] - self.quotas[source])
        number, place = divmod(place, self.counts[source])
        [sample] = self.pass_of(source, number)(np.array([place]))
        return Visit(self.starts[source] + int(sample), number)

    def __iter__(self) -> Iterator[list[Visit]]:
        for batch in self.mixed:
            yield [self.visit(visit.sample, visit.epoch) for visit in batch]
