"""DPM-Solver++ (2S): second order within each step, at two calls."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from dit.diffusion.denoiser import Denoise
from dit.diffusion.path import Point, ancestral_stds
from dit.diffusion.prediction import Estimate
from dit.diffusion.sampler.transition import StepNoise, check_share, transition


def dpmpp_2s(denoise: Denoise, x: Tensor, points: Sequence[Point], noise: StepNoise, eta: float = 0.0) -> Tensor:
    """The x0 seen half way in log-SNR leads the whole step (Lu et al. 2022, arXiv:2211.01095, algorithm 1); with
    eta = 1 its SDE form, where the way to the middle has noise too, of the same path. A step from pure noise or to none
    is a single one of first order."""
    check_share("eta", eta)
    for here, there in pairwise(points):
        estimate = denoise(x, here)
        if there.sigma > 0 and here.alpha > 0:
            middle = here.path.point_of_log_snr((here.log_snr + there.log_snr) / 2)
            fresh = eta * ancestral_stds(here, middle)[0]
            half_way = transition(estimate, here, middle, fresh, noise)
            estimate = Estimate.of_x0(x, denoise(half_way, middle).x0, here)
        x = transition(estimate, here, there, eta * ancestral_stds(here, there)[0], noise)
    return x
