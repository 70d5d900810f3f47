"""Samplers of the reverse SDE: Euler-Maruyama, and EDM's stochastic sampler with churn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

from dit.diffusion.denoiser import Denoise
from dit.diffusion.path import Point
from dit.diffusion.sampler.runge_kutta import HEUN, SIGMA, TIME, one_step
from dit.diffusion.sampler.transition import StepNoise

# --- Euler-Maruyama. The diffusion w(point) >= 0 is the amount of noise that the SDE adds. Backwards in time it is
#     x' = x - |dt| (v + w eps / sigma) + sqrt(2 w |dt|) z, with the same marginals for every w (Ma et al. 2024, SiT,
#     arXiv:2401.08740, section 2.2, whose w is 2 w here).

Diffusion = Callable[[Point], float]


def sigma(point: Point, norm: float = 1.0) -> float:
    """Returns a diffusion proportional to sigma."""
    return norm * point.sigma


def constant(point: Point, norm: float = 1.0) -> float:
    """Returns the same diffusion at every point."""
    return norm


def linear(point: Point, norm: float = 1.0) -> float:
    """Returns a diffusion proportional to t."""
    return norm * point.t


def decreasing(point: Point, norm: float = 1.0) -> float:
    """Returns a diffusion that is largest at t = 1 and, for norm = 1, 0 at t = 0."""
    return 0.25 * (1 - norm * math.cos(math.pi * point.t)) ** 2


def score_based(point: Point, norm: float = 1.0) -> float:
    """Returns half the squared diffusion of the forward SDE, sigma sigma' - sigma^2 alpha' / alpha (Song et al. 2021).
    Raises ValueError if alpha = 0."""
    if point.alpha == 0:
        raise ValueError(
            f"the score-based diffusion is infinite at t={point.t:g}, where alpha=0: choose another, such as sigma, or "
            f"a time grid that starts at alpha > 0, such as grid.start=0.99"
        )
    return norm * point.sigma * (point.d_sigma - point.sigma * point.d_alpha / point.alpha)


def euler_maruyama(
    denoise: Denoise, x: Tensor, points: Sequence[Point], noise: StepNoise, diffusion: Diffusion = sigma
) -> Tensor:
    """Euler-Maruyama on the reverse SDE with a chosen diffusion (SiT, arXiv:2401.08740, section
    2.4). A step to sigma = 0 is a deterministic Euler step."""
    for here, there in pairwise(points):
        estimate = denoise(x, here)
        if there.sigma == 0:
            x = estimate.jump(there)
            continue
        dt, w = here.t - there.t, diffusion(here)
        x = x - dt * (TIME.slope(estimate, here) - w * estimate.score(here))
        if w:
            x = x + math.sqrt(2 * w * dt) * noise(here, there)
    return x


def edm(
    denoise: Denoise,
    x: Tensor,
    points: Sequence[Point],
    noise: StepNoise,
    churn: float = 40.0,
    lowest: float = 0.05,
    highest: float = 50.0,
    inflation: float = 1.003,
) -> Tensor:
    """EDM's stochastic sampler: Heun's method in sigma / alpha, where each step first adds noise (Karras et al. 2022,
    arXiv:2206.00364, algorithm 2).

    churn: S_churn; 0 is deterministic. lowest, highest: S_min and S_max, values of sigma / alpha. inflation: S_noise.
    The noise level is raised at most to the path's end (`VarianceExploding` has none). A step from alpha = 0 or to
    sigma = 0 is of first order. Raises ValueError for a negative churn or lowest > highest.
    """
    if churn < 0 or not lowest <= highest:
        raise ValueError(f"edm: churn={churn} must not be negative, and lowest={lowest} at most highest={highest}")
    gamma = min(churn / (len(points) - 1), math.sqrt(2) - 1)
    for here, there in pairwise(points):
        ratio = here.sigma / here.alpha if here.alpha else math.inf
        if gamma and here.alpha and lowest <= ratio <= highest:
            raised = here.path.point_of_log_snr(-math.log(ratio * (1 + gamma)))
            fresh = math.sqrt(max((raised.sigma / raised.alpha) ** 2 - ratio**2, 0.0))
            # Uses the noise key (here, there) of the step: the intervals of the churn overlap earlier steps.
            x = raised.alpha * (x / here.alpha + (inflation * fresh) * noise(here, there))
            here = raised
        first_order = there.sigma == 0 or here.alpha == 0
        x = denoise(x, here).jump(there) if first_order else one_step(denoise, x, here, there, HEUN, SIGMA)
    return x
