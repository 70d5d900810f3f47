"""DPM-Solver++ (2M): the second-order multistep method at one call a step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from dit.diffusion.denoiser import Denoise
from dit.diffusion.path import Point
from dit.diffusion.prediction import Estimate
from dit.diffusion.sampler.transition import Draw, shrink, transition


def dpmpp_2m(denoise: Denoise, x: Tensor, points: Sequence[Point], noise: Draw) -> Tensor:
    """Second order (Lu et al. 2022, arXiv:2211.01095, algorithm 2): x0 is extrapolated in log-SNR from the last two
    estimates. The first step and a step that ends without noise are of first order."""
    last: Estimate | None = None
    last_h = 0.0
    for here, there in pairwise(points):
        estimate = denoise(x, here)
        h = there.log_snr - here.log_snr
        if last is None or there.sigma == 0:
            x = transition(estimate, there)
        else:
            x0 = estimate.x0 + (h / (2 * last_h)) * (estimate.x0 - last.x0)
            x = (there.sigma / here.sigma) * x + there.alpha * (1 - shrink(here, there)) * x0
        last, last_h = estimate, h
    return x
