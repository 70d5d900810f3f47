"""Ancestral sampling on any process."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from dit.diffusion.denoiser import Denoise
from dit.diffusion.path import Point
from dit.diffusion.sampler.transition import StepNoise


def ancestral(denoise: Denoise, x: Tensor, points: Sequence[Point], noise: StepNoise) -> Tensor:
    """Each step is the process's own (`Process.step`). On a Gaussian path this is Euler ancestral: DDIM with eta =
    1."""
    for here, there in pairwise(points):
        x = here.path.step(denoise(x, here), x, here, there, noise)
    return x
