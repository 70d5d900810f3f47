"""Multistep exponential integrators: DPM-Solver++, DEIS and UniPC, with one shared step.

For the probability-flow ODE, with lambda = log(alpha / sigma) and a step of length h, the linear part is solved exactly
and the estimate is interpolated in lambda through the last few points (Lu et al. 2022, arXiv:2211.01095, eq. 8)

    x' = (sigma' / sigma) x + alpha' int_0^h e^-(h - s) x0(lambda + s) ds      in terms of x0
    x' = (alpha' / alpha) x - sigma' int_0^h e^+(h - s) eps(lambda + s) ds     in terms of eps

The reverse SDE of strength eta is the first with h (1 + eta) instead of h.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from torch import Tensor

from dit.diffusion.denoiser import Denoise
from dit.diffusion.path import Point, exp_minus_h
from dit.diffusion.sampler.transition import StepNoise, weighted

# (nodes, z) -> the weight of the estimate at each node. Nodes are positions in units of h: 0 is the current point,
# negative ones are past points, 1 is the end of the step. z is h (1 + eta) for x0, with eta = 0 for the ODE, and -h for
# eps.
Rule = Callable[[Sequence[float], float], np.ndarray]


def moments(z: float, count: int) -> np.ndarray:
    """Returns J_k = int_0^1 z e^(-z (1 - r)) r^k dr for k = 0 .. count - 1, by the recursion J_k = 1 - (k / z) J_(k-1);
    for small z, where the recursion cancels, by Gauss-Legendre quadrature."""
    if abs(z) < 1:
        node, weight = NODES
        return np.array([(weight * z * np.exp(-z * (1 - node)) * node**k).sum() for k in range(count)])
    found = [-math.expm1(-z)]
    for k in range(1, count):
        found.append(1 - k / z * found[-1])
    return np.array(found)


def gauss_legendre(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the nodes and weights of Gauss-Legendre quadrature on [0, 1]."""
    node, weight = np.polynomial.legendre.leggauss(count)
    return (node + 1) / 2, weight / 2


NODES = gauss_legendre(10)


def exact(nodes: Sequence[float], z: float) -> np.ndarray:
    """Returns the weights that integrate the polynomial through all nodes exactly."""
    return interpolate(nodes, moments(z, len(nodes)))


def midpoint(nodes: Sequence[float], z: float) -> np.ndarray:
    """Returns the weights of `exact`, but for two nodes those of the midpoint rule: the line's value at the middle of
    the step is used for all of it. This is DPM-Solver++ (2M), and UniPC with B(h) = e^h - 1."""
    j = moments(z, len(nodes))
    if len(nodes) == 2:
        j[1] = j[0] / 2
    return interpolate(nodes, j)


def halved(nodes: Sequence[float], z: float) -> np.ndarray:
    """Returns the weights of `midpoint`, but for three nodes with half of the second difference: the third order of
    dpm-solver, k-diffusion and diffusers. It converges at order 2; it is for comparison."""
    if len(nodes) < 3:
        return midpoint(nodes, z)
    j = moments(z, len(nodes))
    j[2] /= 2
    return interpolate(nodes, j)


def interpolate(nodes: Sequence[float], j: np.ndarray) -> np.ndarray:
    """Returns the weights w with sum_i w_i nodes_i^k = J_k for every k."""
    return np.linalg.solve(np.vander(nodes, increasing=True).T, j)


Past = tuple[float, Tensor]  # log(alpha / sigma) of a point, and the estimate (of x0 or eps) there


def combine(rule: Rule, here: Point, history: Sequence[Past], h: float, z: float) -> Tensor:
    """Returns the weighted sum of estimates. Those at pure noise, where the log-SNR is -inf, are left out."""
    finite = [past for past in history if math.isfinite(past[0])] if math.isfinite(h) else history[:1]
    weights = rule([(log_snr - here.log_snr) / h if math.isfinite(h) else 0.0 for log_snr, _ in finite], z)
    return weighted(weights.tolist(), [value for _, value in finite])


def data_step(x: Tensor, here: Point, there: Point, history: Sequence[Past], rule: Rule, eta: float = 0.0) -> Tensor:
    """Returns x at `there` after one step in terms of x0, without its noise."""
    ratio = exp_minus_h(here, there)
    h = -math.log(ratio) if ratio > 0 else math.inf
    keep = there.sigma / here.sigma * ratio**eta
    return keep * x + there.alpha * combine(rule, here, history, h, (1 + eta) * h)


def dpmpp(
    denoise: Denoise,
    x: Tensor,
    points: Sequence[Point],
    noise: StepNoise,
    order: int = 2,
    eta: float = 0.0,
    rule: Rule = exact,
) -> Tensor:
    """DPM-Solver++ (nM) (Lu et al. 2022, arXiv:2211.01095, algorithm 2), and with eta = 1 its SDE form. One network
    evaluation per step; the first steps, and a step to sigma = 0, are of lower order."""
    check_order(order)
    if eta < 0:
        raise ValueError(f"eta={eta} is the strength of the noise and must not be negative")
    history: list[Past] = []
    for here, there in pairwise(points):
        estimate = denoise(x, here)
        history = [(here.log_snr, estimate.x0), *history][:order]
        if there.sigma == 0:
            x = estimate.jump(there)
            continue
        x = data_step(x, here, there, history, rule, eta)
        if eta:
            x = x + there.sigma * math.sqrt(1 - exp_minus_h(here, there) ** (2 * eta)) * noise(here, there)
    return x


def deis(denoise: Denoise, x: Tensor, points: Sequence[Point], noise: StepNoise, order: int = 2) -> Tensor:
    """DEIS (Zhang and Chen 2023, arXiv:2204.13902, tAB in log(sigma / alpha)): the multistep rule in terms of eps."""
    check_order(order)
    history: list[Past] = []
    for here, there in pairwise(points):
        estimate = denoise(x, here)
        history = [(here.log_snr, estimate.eps), *history][:order]
        if there.sigma == 0 or here.alpha == 0:
            x = estimate.jump(there)
            continue
        h = -math.log(exp_minus_h(here, there))
        x = there.alpha / here.alpha * x + there.sigma * combine(exact, here, history, h, -h)
    return x


def unipc(
    denoise: Denoise, x: Tensor, points: Sequence[Point], noise: StepNoise, order: int = 2, rule: Rule = midpoint
) -> Tensor:
    """UniPC with B(h) = e^h - 1 (Zhao et al. 2023, arXiv:2302.04867, algorithm 1). The predictor is DPM-Solver++; the
    corrector repeats each step with the estimate at the step's end as one more node, which the next step evaluates
    anyway. One network evaluation per step."""
    check_order(order)
    history: list[Past] = []
    before: tuple[Tensor, Point] | None = None
    for here, there in pairwise(points):
        estimate = denoise(x, here)
        now = (here.log_snr, estimate.x0)
        if before is not None and before[1].alpha > 0:
            x = data_step(*before, here, [*history, now], rule)
        before = x, here
        history = [now, *history][:order]
        # Not `estimate.jump`: its eps belongs to x before the correction.
        x = there.alpha * estimate.x0 if there.sigma == 0 else data_step(x, here, there, history, rule)
    return x


def check_order(order: int) -> None:
    if order not in (1, 2, 3):
        raise ValueError(f"a multistep sampler's order={order} must be 1, 2 or 3")
