"""DPM-Solver++ (2S): a singlestep method of second order, with two network evaluations per step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from dit.diffusion.denoiser import Denoise
from dit.diffusion.path import Point, ancestral_stds
from dit.diffusion.prediction import Estimate
from dit.diffusion.sampler.transition import StepNoise, check_share, transition


def dpmpp_2s(denoise: Denoise, x: Tensor, points: Sequence[Point], noise: StepNoise, eta: float = 0.0) -> Tensor:
    """Takes each step with the x0 estimated at its middle in log-SNR (Lu et al. 2022, arXiv:2211.01095, algorithm 1).
    eta = 1 is its SDE form, where the half step to the middle has noise of the same Brownian path. A step from alpha =
    0 or to sigma = 0 is of first order. Raises ValueError unless eta is in [0, 1]."""
    check_share("eta", eta)
    for here, there in pairwise(points):
        estimate = denoise(x, here)
        if there.sigma > 0 and here.alpha > 0:
            middle = here.path.point_of_log_snr((here.log_snr + there.log_snr) / 2)
            fresh = eta * ancestral_stds(here, middle)[0]
            x_middle = transition(estimate, here, middle, fresh, noise)
            estimate = Estimate.of_x0(x, denoise(x_middle, middle).x0, here)
        x = transition(estimate, here, there, eta * ancestral_stds(here, there)[0], noise)
    return x
