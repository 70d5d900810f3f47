"""Chance, keyed: every random number is a function of integers that name it, so batch size, rank and device
change nothing. Numbers are drawn on the CPU, whose stream is the same everywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def generator(*keys: int) -> torch.Generator:
    """A CPU generator seeded by integers, e.g. (seed, step, sample)."""
    digest = hashlib.blake2b(repr([int(key) for key in keys]).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


class Noise:
    """Standard normal noise for samples with seeds, by draw number: `noise(k)` is (B, *shape) float32.

    Draw 0 is where a sampler starts; the draws of its steps come after.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.seeds, self.shape, self.device = seeds, tuple(shape), device

    def __call__(self, draw: int) -> Tensor:
        rows = [torch.randn(self.shape, generator=generator(seed, draw), dtype=torch.float32) for seed in self.seeds]
        stacked = torch.stack(rows)
        if torch.device(self.device).type == "cuda":  # from pinned memory, so that the loop need not wait for the copy
            stacked = stacked.pin_memory()
        return stacked.to(self.device, non_blocking=True)
