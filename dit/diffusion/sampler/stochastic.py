"""Samplers of the reverse SDE: Euler-Maruyama, and EDM's with its churn of fresh noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

from dit.diffusion.denoiser import Denoise
from dit.diffusion.path import Point
from dit.diffusion.sampler.runge_kutta import HEUN, SIGMA, TIME, one_step
from dit.diffusion.sampler.transition import StepNoise

# --- Euler-Maruyama. A diffusion w(point) >= 0 says how much noise the SDE adds. Backwards in time it is
#     x' = x - |dt| (v + w eps / sigma) + sqrt(2 w |dt|) z, with the same marginals for every w (Ma et al. 2024, SiT,
#     arXiv:2401.08740, section 2.2, whose w is 2 w here).

Diffusion = Callable[[Point], float]


def sigma(point: Point, norm: float = 1.0) -> float:
    return norm * point.sigma


def constant(point: Point, norm: float = 1.0) -> float:
    return norm


def linear(point: Point, norm: float = 1.0) -> float:
    return norm * point.t


def decreasing(point: Point, norm: float = 1.0) -> float:
    """Largest at pure noise, none at the data's end for norm 1."""
    return 0.25 * (1 - norm * math.cos(math.pi * point.t)) ** 2


def score_based(point: Point, norm: float = 1.0) -> float:
    """Half the squared diffusion of the forward SDE, sigma sigma' - sigma^2 alpha' / alpha (Song et al. 2021)."""
    if point.alpha == 0:
        raise ValueError(
            f"the score-based diffusion is infinite at t={point.t:g}, where alpha=0: choose another, such as sigma, or "
            f"a time grid that starts where some signal is left, such as grid.start=0.99"
        )
    return norm * point.sigma * (point.d_sigma - point.sigma * point.d_alpha / point.alpha)


def euler_maruyama(
    denoise: Denoise, x: Tensor, points: Sequence[Point], noise: StepNoise, diffusion: Diffusion = sigma
) -> Tensor:
    """Order 1/2 on the reverse SDE with a diffusion of choice (SiT, arXiv:2401.08740, section 2.4). A step that ends
    without noise is a plain jump to x0."""
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
    """Heun's method in sigma / alpha, where each step first goes back to a higher noise (Karras et al. 2022,
    arXiv:2206.00364, algorithm 2): churn is S_churn, lowest and highest are S_min and S_max, in units of sigma / alpha,
    and inflation is S_noise. churn = 0 is deterministic. Where the path ends, the noise is raised no further (the
    exploding path goes on). A step from pure noise or to none is a single one of first order."""
    if churn < 0 or not lowest <= highest:
        raise ValueError(f"edm: churn={churn} must not be negative, and lowest={lowest} at most highest={highest}")
    gamma = min(churn / (len(points) - 1), math.sqrt(2) - 1)
    for here, there in pairwise(points):
        ratio = here.sigma / here.alpha if here.alpha else math.inf
        if gamma and here.alpha and lowest <= ratio <= highest:
            raised = here.path.point_of_log_snr(-math.log(ratio * (1 + gamma)))
            fresh = math.sqrt(max((raised.sigma / raised.alpha) ** 2 - ratio**2, 0.0))
            # The noise is that of the step down: the ways up overlap those of the steps before.
            x = raised.alpha * (x / here.alpha + (inflation * fresh) * noise(here, there))
            here = raised
        first_order = there.sigma == 0 or here.alpha == 0
        x = denoise(x, here).jump(there) if first_order else one_step(denoise, x, here, there, HEUN, SIGMA)
    return x
