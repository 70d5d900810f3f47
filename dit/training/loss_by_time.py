"""The mean training loss of each interval of time."""

from __future__ import annotations

import torch
from torch import Tensor

from dit.distributed import all_reduce_sum


class LossByTime:
    """Sums and counts of the losses of `bins` equal intervals of [0, 1], over all ranks; `sums` has the sums first."""

    def __init__(self, bins: int) -> None:
        self.bins = bins
        self.sums = [0.0] * 2 * bins
        self.added: list[tuple[Tensor, Tensor]] = []  # times and losses that are not in the sums yet

    def add(self, times: Tensor, losses: Tensor) -> None:
        """times: (B,) float64 on the CPU. losses: (B,) on any device, which this does not wait for."""
        self.added.append((times, losses))

    def collect(self) -> None:
        """Adds what was added to the sums. Every rank must call it."""
        if not self.added:
            return
        times, losses = (torch.cat(parts).double().cpu() for parts in zip(*self.added, strict=True))
        place = (times * self.bins).long().clamp(0, self.bins - 1)
        sums = [torch.bincount(place, weights, minlength=self.bins).tolist() for weights in (losses, None)]
        self.sums = [old + new for old, new in zip(self.sums, all_reduce_sum(*sums[0], *sums[1]), strict=True)]
        self.added = []

    def take(self) -> dict[str, float]:
        """Returns the mean loss of each interval that has one, by the interval, such as 0.2-0.4, and begins anew. Every
        rank must call it."""
        self.collect()
        totals, counts = self.sums[: self.bins], self.sums[self.bins :]
        names = [f"{i / self.bins:.2g}-{(i + 1) / self.bins:.2g}" for i in range(self.bins)]
        self.sums = [0.0] * len(self.sums)
        return {name: total / count for name, total, count in zip(names, totals, counts, strict=True) if count}
