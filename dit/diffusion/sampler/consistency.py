"""Consistency sampling: each step jumps to the clean estimate and adds noise anew."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from dit.diffusion.denoiser import Denoise
from dit.diffusion.path import Point
from dit.diffusion.sampler.transition import StepNoise, transition


def consistency(denoise: Denoise, x: Tensor, points: Sequence[Point], noise: StepNoise) -> Tensor:
    """For networks whose x0 is good at once (Song et al. 2023, arXiv:2303.01469, algorithm 1; LCM, Luo et al. 2023,
    arXiv:2310.04378): x' = alpha' x0 + sigma' z."""
    for here, there in pairwise(points):
        x = transition(denoise(x, here), here, there, there.sigma, noise)
    return x
