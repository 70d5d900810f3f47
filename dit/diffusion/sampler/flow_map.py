"""The sampler of flow maps: one network call takes x from each point of the grid to the next."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from dit.diffusion.denoiser import Denoise
from dit.diffusion.path import Point
from dit.diffusion.sampler.transition import StepNoise


def flow_map(denoise: Denoise, x: Tensor, points: Sequence[Point], noise: StepNoise) -> Tensor:
    """Walks a flow map, for networks that get the duration of a jump (`dit.diffusion.flow_map`)."""
    return walk(denoise, x, points)


def walk(denoise: Denoise, x: Tensor, points: Sequence[Point]) -> Tensor:
    """Returns x at the last point: from each point to the next x' = alpha' x0 + sigma' eps, on the linear path
    x - (t - t') u (Geng et al. 2025, arXiv:2505.13447, algorithm 2)."""
    for here, there in pairwise(points):
        x = denoise(x, here.towards(there.t)).jump(there)
    return x
