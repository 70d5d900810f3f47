"""Multistep exponential integrators: DPM-Solver++, DEIS and UniPC, all one rule.

Along the probability-flow ODE, with lambda = log(alpha / sigma) and a step of length h, the linear part is solved
exactly and the estimate is interpolated in lambda through the last few points (Lu et al. 2022, arXiv:2211.01095, eq. 8)

    x' = (sigma' / sigma) x + alpha' int_0^h e^-(h - s) x0(lambda + s) ds      in terms of x0
    x' = (alpha' / alpha) x - sigma' int_0^h e^+(h - s) eps(lambda + s) ds     in terms of eps

The reverse SDE of strength eta is the first with h (1 + eta) in place of h.
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

# (nodes, z) -> the weight of the estimate at each node. Nodes are places in units of h: 0 is here, negative is the
# past, 1 is the end of the step. z is h for x0 without noise, h (1 + eta) with it, and -h for eps.
Rule = Callable[[Sequence[float], float], np.ndarray]


def moments(z: float, count: int) -> np.ndarray:
    """J_k = int_0^1 z e^(-z (1 - r)) r^k dr for k = 0 .. count - 1; by the recursion J_k = 1 - (k / z) J_(k-1), which
    loses its digits for small z, where Gauss and Legendre need only few nodes."""
    if abs(z) < 1:
        place, weight = NODES
        return np.array([(weight * z * np.exp(-z * (1 - place)) * place**k).sum() for k in range(count)])
    found = [-math.expm1(-z)]
    for k in range(1, count):
        found.append(1 - k / z * found[-1])
    return np.array(found)


def legendre(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of Gauss and Legendre on [0, 1]."""
    place, weight = np.polynomial.legendre.leggauss(count)
    return (place + 1) / 2, weight / 2


NODES = legendre(10)


def exact(nodes: Sequence[float], z: float) -> np.ndarray:
    """The integral of the polynomial through all nodes."""
    return interpolate(nodes, moments(z, len(nodes)))


def midpoint(nodes: Sequence[float], z: float) -> np.ndarray:
    """As `exact`, but through two nodes the line's value at the middle of the step counts for all of it: the form of
    DPM-Solver++ (2M) and of UniPC with B(h) = e^h - 1."""
    j = moments(z, len(nodes))
    if len(nodes) == 2:
        j[1] = j[0] / 2
    return interpolate(nodes, j)


def halved(nodes: Sequence[float], z: float) -> np.ndarray:
    """As `midpoint` through two nodes, and through three half of the second difference: what dpm-solver, k-diffusion
    and diffusers call the third order. Its error falls at order 2; it is here to compare with."""
    if len(nodes) < 3:
        return midpoint(nodes, z)
    j = moments(z, len(nodes))
    j[2] /= 2
    return interpolate(nodes, j)


def interpolate(nodes: Sequence[float], j: np.ndarray) -> np.ndarray:
    """The weights w with sum_i w_i nodes_i^k = J_k for every k."""
    return np.linalg.solve(np.vander(nodes, increasing=True).T, j)


Seen = tuple[float, Tensor]  # log-SNR and the estimate (of x0 or eps) there


def weigh(rule: Rule, here: Point, seen: Sequence[Seen], h: float, z: float) -> Tensor:
    """The weighted sum of estimates. Those from pure noise, infinitely far, say nothing of the slope."""
    near = [s for s in seen if math.isfinite(s[0])] if math.isfinite(h) else seen[:1]
    weights = rule([(log_snr - here.log_snr) / h if math.isfinite(h) else 0.0 for log_snr, _ in near], z)
    return weighted(weights.tolist(), [value for _, value in near])


def data_step(x: Tensor, here: Point, there: Point, seen: Sequence[Seen], rule: Rule, eta: float = 0.0) -> Tensor:
    """One step in terms of x0, without its noise."""
    ratio = exp_minus_h(here, there)
    h = -math.log(ratio) if ratio > 0 else math.inf
    keep = there.sigma / here.sigma * ratio**eta
    return keep * x + there.alpha * weigh(rule, here, seen, h, (1 + eta) * h)


def dpmpp(
    denoise: Denoise,
    x: Tensor,
    points: Sequence[Point],
    noise: StepNoise,
    order: int = 2,
    eta: float = 0.0,
    rule: Rule = exact,
) -> Tensor:
    """DPM-Solver++ (nM) (Lu et al. 2022, arXiv:2211.01095, algorithm 2), and with eta = 1 its SDE form. One call a
    step; the first steps, and a step that ends without noise, are of lower order."""
    check_order(order)
    if eta < 0:
        raise ValueError(f"eta={eta} is the strength of the noise and must not be negative")
    seen: list[Seen] = []
    for here, there in pairwise(points):
        estimate = denoise(x, here)
        seen = [(here.log_snr, estimate.x0), *seen][:order]
        if there.sigma == 0:
            x = estimate.jump(there)
            continue
        x = data_step(x, here, there, seen, rule, eta)
        if eta:
            x = x + there.sigma * math.sqrt(1 - exp_minus_h(here, there) ** (2 * eta)) * noise(here, there)
    return x


def deis(denoise: Denoise, x: Tensor, points: Sequence[Point], noise: StepNoise, order: int = 2) -> Tensor:
    """DEIS (Zhang and Chen 2023, arXiv:2204.13902, tAB in log(sigma / alpha)): the multistep rule in terms of eps."""
    check_order(order)
    seen: list[Seen] = []
    for here, there in pairwise(points):
        estimate = denoise(x, here)
        seen = [(here.log_snr, estimate.eps), *seen][:order]
        if there.sigma == 0 or here.alpha == 0:
            x = estimate.jump(there)
            continue
        h = -math.log(exp_minus_h(here, there))
        x = there.alpha / here.alpha * x + there.sigma * weigh(exact, here, seen, h, -h)
    return x


def unipc(
    denoise: Denoise, x: Tensor, points: Sequence[Point], noise: StepNoise, order: int = 2, rule: Rule = midpoint
) -> Tensor:
    """UniPC with B(h) = e^h - 1 (Zhao et al. 2023, arXiv:2302.04867, algorithm 1). The predictor is DPM-Solver++; once
    the network has seen the point it led to, the step is taken again with that point as one more node, at no call
    more."""
    check_order(order)
    seen: list[Seen] = []
    before: tuple[Tensor, Point] | None = None
    for here, there in pairwise(points):
        estimate = denoise(x, here)
        now = (here.log_snr, estimate.x0)
        if before is not None and before[1].alpha > 0:
            x = data_step(*before, here, [*seen, now], rule)
        before = x, here
        seen = [now, *seen][:order]
        # Not a jump along the estimate: its eps belongs to x before the correction.
        x = there.alpha * estimate.x0 if there.sigma == 0 else data_step(x, here, there, seen, rule)
    return x


def check_order(order: int) -> None:
    if order not in (1, 2, 3):
        raise ValueError(f"a multistep sampler's order={order} must be 1, 2 or 3")
