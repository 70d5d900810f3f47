"""DDIM: Euler's method on the probability-flow ODE of any path, or with fresh noise the ancestral sampler."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from dit.diffusion.denoiser import Denoise
from dit.diffusion.path import Point, ancestral_stds
from dit.diffusion.sampler.transition import StepNoise, check_share, transition


def ddim(denoise: Denoise, x: Tensor, points: Sequence[Point], noise: StepNoise, eta: float = 0.0) -> Tensor:
    """DDIM, of first order (Song et al. 2021, arXiv:2010.02502, eq. 12). eta = 0 is deterministic and equals the Euler
    method of rectified flow and of EDM; eta = 1 is Euler ancestral, which is DDPM with the smaller variance. Raises
    ValueError unless eta is in [0, 1]."""
    check_share("eta", eta)
    for here, there in pairwise(points):
        fresh = eta * ancestral_stds(here, there)[0]
        x = transition(denoise(x, here), here, there, fresh, noise)
    return x
