"""The order of training data as a function of (seed, step): nothing to save, nothing to restore."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler

from dit.diffusion.noise import generator


class Visit(NamedTuple):
    """A sample met in an epoch, once in each: what is drawn anew every time is keyed by the pair."""

    sample: int
    epoch: int


class KeyedBatches(Sampler[list[Visit]]):
    """Endless batches of visits. Batch s is rows s B .. (s + 1) B - 1 of the concatenated epochs, each epoch a
    permutation keyed by (seed, epoch); a process of `world` takes every world-th row of every batch.

    Starting at `start` is therefore the same as having walked there, for any number of workers and processes. among:
    the samples to visit, (count,); None for the first `count`.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        among: np.ndarray | None = None,
    ) -> None:
        if batch_size < 1 or batch_size % world:
            raise ValueError(
                f"batch_size={batch_size} must be positive and a multiple of the number of processes ({world})"
            )
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.start, self.rank, self.world = start, rank, world
        self.among = np.arange(count) if among is None else among

    def __iter__(self) -> Iterator[list[Visit]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in itertools.count(self.start):
            batch = []
            for row in range(step * self.batch_size + self.rank, (step + 1) * self.batch_size, self.world):
                if row // self.count != epoch:
                    epoch = row // self.count
                    order = self.among[torch.randperm(self.count, generator=generator(self.seed, epoch)).numpy()]
                batch.append(Visit(int(order[row % self.count]), epoch))
            yield batch


def subset(total: int, count: int | None, seed: int = 0) -> np.ndarray:
    """(min(count, total),) int64: the places of a random part of `total` samples, in random order; all for None.

    It is a function of its arguments, and a larger count begins with the places of a smaller one. The first samples of
    a data set are no fair part of it: a folder is sorted by class.
    """
    return torch.randperm(total, generator=generator(seed, -1))[:count].numpy()  # -1 is no epoch of `KeyedBatches`
