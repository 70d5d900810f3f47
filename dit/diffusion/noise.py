"""Keyed random numbers: each is a function of integer keys, so that it does not depend on batch size, rank or device.
Numbers are drawn on the CPU, whose generator gives the same stream on every machine."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dit.types import to_device

if TYPE_CHECKING:
    from dit.diffusion.path import Point

TICKS = 2**14  # the resolution of the time of Brownian paths
START, PATH = 0, -2  # keys; training uses steps >= 0 and -1 in the position of PATH, so that no stream is used twice


def generator(*keys: int) -> torch.Generator:
    """Returns a CPU generator seeded by integers, e.g. (seed, step, sample)."""
    digest = hashlib.blake2b(repr([int(key) for key in keys]).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def brownian_time(point: Point) -> float:
    """Returns sigma / (alpha + sigma): 0 at data, 1 at pure noise, and equal to t on the linear path."""
    return point.sigma / (point.alpha + point.sigma)


class Noise:
    """The standard normal noise of B samples with seeds: (B, *shape) float32 on `device`.

    `start()` is the initial noise of a sampler. `noise(here, there)` is the noise of a step between two points: the
    increment of a Brownian path over the step, divided by the square root of the step's length. Each seed has one path
    for every number of steps, so 8 and 64 steps of a sampler use the same noise: disjoint steps have independent noise,
    and the noise of a long step is the sum of the noise of its parts, each times the square root of its share.

    The time of the path is `brownian_time`, in TICKS ticks. The path is a virtual Brownian tree: the value at 0 is 0,
    the value at the end is drawn, and the value at the middle of an interval is the mean of the interval's ends plus a
    draw keyed by the seed and the tick (Li et al. 2020, arXiv:2001.01328, section 4). If both ends of a step round to
    one tick, its noise is an independent standard normal draw keyed by the two ends.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        forks: tuple[int, ...] = (),
    ) -> None:
        self.seeds, self.shape, self.device, self.forks = seeds, tuple(shape), device, forks
        # The tree's values on the paths to the last two ticks: consecutive steps share one end.
        self.recent: deque[dict[int, Tensor]] = deque(maxlen=2)

    def start(self) -> Tensor:
        return to_device(self._drawn(START), self.device)

    def __call__(self, here: Point, there: Point) -> Tensor:
        if isinstance(here.t, Tensor):  # each sample has its own step
            rows = [self._of_row(row)(here[row], there[row]) for row in range(len(self.seeds))]
            return torch.cat(rows)
        first, last = brownian_time(here), brownian_time(there)
        a, b = round(first * TICKS), round(last * TICKS)
        if a == b:
            z = self._drawn(PATH, *self.forks, -1, round(first * 2**50), round(last * 2**50))
        else:
            before = self._value(a)
            z = (self._value(b) - before) / math.sqrt(abs(b - a))
        return to_device(z, self.device)

    def fork(self, key: int) -> Noise:
        """Returns the noise of other paths of the same seeds, independent of these and of those of other keys >= 0."""
        return Noise(self.seeds, self.shape, self.device, (*self.forks, key))

    def _of_row(self, row: int) -> Noise:
        return Noise(self.seeds[row : row + 1], self.shape, self.device, self.forks)

    def _drawn(self, *keys: int) -> Tensor:
        """Returns standard normal draws (B, *shape), float32 on the CPU."""
        z = torch.empty(len(self.seeds), *self.shape, dtype=torch.float32)
        for row, seed in zip(z, self.seeds, strict=True):
            torch.randn(self.shape, generator=generator(seed, *keys), dtype=torch.float32, out=row)
        return z

    def _value(self, tick: int) -> Tensor:
        """Returns the path's value, of variance `tick`. Sums and products are separate operations, because the
        rounding of a fused kernel depends on the position in the batch."""
        cached = {node: value for branch in self.recent for node, value in branch.items()}
        if not cached:
            zero = torch.zeros(len(self.seeds), *self.shape, dtype=torch.float32)
            cached = {0: zero, TICKS: math.sqrt(TICKS) * self._drawn(PATH, *self.forks, TICKS)}
        left, right = 0, TICKS
        branch = {left: cached[left], right: cached[right]}
        while tick not in branch:
            middle = (left + right) // 2
            if middle in cached:
                branch[middle] = cached[middle]
            else:
                z = self._drawn(PATH, *self.forks, middle)
                branch[middle] = (branch[left] + branch[right]) * 0.5 + z * math.sqrt((right - left) / 4)
            left, right = (left, middle) if tick < middle else (middle, right)
        self.recent.append(branch)
        return branch[tick]
