"""The order of training data as a function of (seed, step): it needs no state in checkpoints."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler

from dit.diffusion.noise import generator


class Visit(NamedTuple):
    """A sample and the epoch that uses it. Each epoch uses each sample once, so the pair keys random draws."""

    sample: int
    epoch: int


class KeyedBatches(Sampler[list[Visit]]):
    """Endless batches of visits. Batch s is rows s B .. (s + 1) B - 1 of the concatenated epochs, each epoch a
    permutation keyed by (seed, epoch). Each of the `world` ranks takes every world-th row of every batch.

    Starting at `start` therefore gives the same batches as iterating to it, for any number of workers and ranks. among:
    the samples to use, (count,); None for the first `count`.
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
    """Returns (min(count, total),) int64: the indices of a random subset of `total` samples, in random order; all of
    them if count is None.

    It is a function of its arguments, and the subset for a larger count begins with that for a smaller one. The first
    samples of a data set are not a representative subset: a folder is sorted by class.
    """
    return torch.randperm(total, generator=generator(seed, -1))[:count].numpy()  # `KeyedBatches` has no epoch -1
