"""Consistency sampling: each step goes to the clean estimate and adds fresh noise."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from dit.diffusion.denoiser import Denoise
from dit.diffusion.path import Point
from dit.diffusion.sampler.transition import StepNoise, transition


def consistency(denoise: Denoise, x: Tensor, points: Sequence[Point], noise: StepNoise) -> Tensor:
    """Multistep consistency sampling, for consistency models: x' = alpha' x0 + sigma' z (Song et al. 2023,
    arXiv:2303.01469, algorithm 1; LCM, Luo et al. 2023, arXiv:2310.04378). A flow map's x0 is its jump to t = 0."""
    for here, there in pairwise(points):
        x = transition(denoise(x, here.towards(0 * here.t)), here, there, there.sigma, noise)
    return x
