"""Random numbers, keyed: every one is a function of integers that name it, so batch size, rank and device change
nothing. Numbers are drawn on the CPU, whose stream is the same everywhere."""

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

TICKS = 2**14  # of the clock that Brownian paths run by
START, PATH = 0, -2  # training has steps from 0 on and -1 in the place of PATH: no stream is met twice


def generator(*keys: int) -> torch.Generator:
    """A CPU generator seeded by integers, e.g. (seed, step, sample)."""
    digest = hashlib.blake2b(repr([int(key) for key in keys]).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def brownian_time(point: Point) -> float:
    """sigma / (alpha + sigma): 0 at data, 1 at pure noise, and t itself on the linear path."""
    return point.sigma / (point.alpha + point.sigma)


class Noise:
    """The standard normal noise of one sampling of B samples with seeds: (B, *shape) float32 on `device`.

    `start()` is where a sampler starts. `noise(here, there)` is for a step between two points: the increment of a
    Brownian path over the step, divided by the root of its length. Each seed has one path, whatever the number of
    steps, so a sampler's results with 8 and with 64 steps come from the same noise: steps that do not overlap have
    independent noise, and that of a long step is the sum of that of its parts, each times the root of its share.

    The path runs by `brownian_time`, in TICKS ticks. It is a virtual Brownian tree: the value at 0 is 0, that at the
    end is drawn, and the value half way between two others is their mean and a draw that is keyed by the seed and the
    place (Li et al. 2020, arXiv:2001.01328, section 4). Of a step so short that both its ends round to one tick the
    noise is keyed by its ends, independent of all other, so that it is standard normal too.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        forks: tuple[int, ...] = (),
    ) -> None:
        self.seeds, self.shape, self.device, self.forks = seeds, tuple(shape), device, forks
        # The values on the way down to the last two places: a walk down the clock meets each place once.
        self.recent: deque[dict[int, Tensor]] = deque(maxlen=2)

    def start(self) -> Tensor:
        return to_device(self._drawn(START), self.device)

    def __call__(self, here: Point, there: Point) -> Tensor:
        if isinstance(here.t, Tensor):  # a step of its own for each sample
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
        """Other paths of the same seeds, independent of these and of those of any other key >= 0."""
        return Noise(self.seeds, self.shape, self.device, (*self.forks, key))

    def _of_row(self, row: int) -> Noise:
        return Noise(self.seeds[row : row + 1], self.shape, self.device, self.forks)

    def _drawn(self, *keys: int) -> Tensor:
        """(B, *shape) float32 on the CPU."""
        z = torch.empty(len(self.seeds), *self.shape, dtype=torch.float32)
        for row, seed in zip(z, self.seeds, strict=True):
            torch.randn(self.shape, generator=generator(seed, *keys), dtype=torch.float32, out=row)
        return z

    def _value(self, tick: int) -> Tensor:
        """The path's value, of variance `tick`. Sums and products stand alone, for a fused kernel rounds by the place
        in the batch."""
        known = {place: value for way in self.recent for place, value in way.items()}
        if not known:
            zero = torch.zeros(len(self.seeds), *self.shape, dtype=torch.float32)
            known = {0: zero, TICKS: math.sqrt(TICKS) * self._drawn(PATH, *self.forks, TICKS)}
        left, right = 0, TICKS
        way = {left: known[left], right: known[right]}
        while tick not in way:
            middle = (left + right) // 2
            if middle in known:
                way[middle] = known[middle]
            else:
                z = self._drawn(PATH, *self.forks, middle)
                way[middle] = (way[left] + way[right]) * 0.5 + z * math.sqrt((right - left) / 4)
            left, right = (left, middle) if tick < middle else (middle, right)
        self.recent.append(way)
        return way[tick]
