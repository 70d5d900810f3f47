"""DDIM, which is Euler's method on the probability-flow ODE of any path."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from dit.diffusion.denoiser import Denoise
from dit.diffusion.path import Point
from dit.diffusion.sampler.transition import Draw, shrink, transition


def ddim(denoise: Denoise, x: Tensor, points: Sequence[Point], noise: Draw, eta: float = 0.0) -> Tensor:
    """First order (Song et al. 2021, arXiv:2010.02502, eq. 12). eta = 0 is deterministic and equals the Euler
    method of rectified flow; eta = 1 is ancestral DDPM sampling with the smaller variance."""
    for step, (here, there) in enumerate(pairwise(points)):
        fresh = eta * there.sigma * math.sqrt(max(1 - shrink(here, there) ** 2, 0.0)) if eta else 0.0
        x = transition(denoise(x, here), there, fresh, noise(step + 1) if fresh else None)
    return x
