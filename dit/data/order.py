"""The order of training data as a function of (seed, step): it needs no state in checkpoints."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler

from dit.diffusion.noise import generator

STORED = 2**20  # a permutation of at most this many numbers is stored; a larger one is computed number by number
ROUNDS = 8


class Permutation:
    """A random permutation of range(count), keyed by integers. Calling it with (N,) int64 places gives the numbers at
    these places.

    Up to STORED numbers it is `torch.randperm`. Above, it is a Feistel network of ROUNDS rounds on the bits of a place
    (Luby and Rackoff 1988), repeated while the result is not below count (cycle walking; Black and Rogaway 2002): it
    needs no memory and no start-up time, and at most two passes on average.
    """

    def __init__(self, count: int, *keys: int) -> None:
        self.count, draws = count, generator(*keys)
        self.stored: np.ndarray | None = None
        if count <= STORED:
            self.stored = torch.randperm(count, generator=draws).numpy()
            return
        bits = (count - 1).bit_length()
        self.right = np.uint64(bits // 2)
        self.low, self.high = np.uint64(2 ** (bits // 2) - 1), np.uint64(2 ** (bits - bits // 2) - 1)
        self.keys = torch.randint(2**62, (ROUNDS,), generator=draws).numpy().astype(np.uint64)

    def __call__(self, places: np.ndarray) -> np.ndarray:
        if self.stored is not None:
            return self.stored[places]
        found = self._feistel(np.asarray(places).astype(np.uint64))
        while (outside := found >= self.count).any():
            found[outside] = self._feistel(found[outside])
        return found.astype(np.int64)

    def _feistel(self, values: np.ndarray) -> np.ndarray:
        """Returns a bijection of the values (N,) uint64 below the power of two: each round changes one half of the bits
        by a function of the other half."""
        left, right = values >> self.right, values & self.low
        for key in self.keys.reshape(-1, 2):
            left = left ^ (mixed(right + key[0]) & self.high)
            right = right ^ (mixed(left + key[1]) & self.low)
        return (left << self.right) | right


def mixed(values: np.ndarray) -> np.ndarray:
    """Returns (N,) uint64 hashes: the finalizer of SplitMix64 (Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


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
        self.start, self.rank, self.world, self.among = start, rank, world, among

    def __iter__(self) -> Iterator[list[Visit]]:
        current, order = -1, None
        for step in itertools.count(self.start):
            rows = np.arange(step * self.batch_size + self.rank, (step + 1) * self.batch_size, self.world)
            epochs, batch = rows // self.count, []
            for epoch in np.unique(epochs).tolist():
                if order is None or epoch != current:
                    current, order = epoch, Permutation(self.count, self.seed, epoch)
                places = order(rows[epochs == epoch] % self.count)
                samples = places if self.among is None else self.among[places]
                batch += [Visit(sample, epoch) for sample in samples.tolist()]
            yield batch


def subset(total: int, count: int | None, seed: int = 0) -> np.ndarray:
    """Returns (min(count, total),) int64: the indices of a random subset of `total` samples, in random order; all of
    them if count is None.

    It is a function of its arguments, and the subset for a larger count begins with that for a smaller one. The first
    samples of a data set are not a representative subset: a folder is sorted by class.
    """
    places = np.arange(total if count is None else min(count, total))
    return Permutation(total, seed, -1)(places)  # `KeyedBatches` has no epoch -1
