"""Ancestral sampling on any process."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from dit.diffusion.denoiser import Denoise
from dit.diffusion.path import Point
from dit.diffusion.sampler.transition import StepNoise


def ancestral(denoise: Denoise, x: Tensor, points: Sequence[Point], noise: StepNoise) -> Tensor:
    """Applies the process's ancestral step (`Process.step`). On a Gaussian path this is Euler ancestral, which is DDIM
    with eta = 1."""
    for here, there in pairwise(points):
        x = here.path.step(denoise(x, here), x, here, there, noise)
    return x
