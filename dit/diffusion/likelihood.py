"""The log-likelihood of data under a denoiser, by the probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from dit.diffusion.denoiser import Denoise
from dit.diffusion.path import Point
from dit.diffusion.sampler.runge_kutta import TIME

# (slope, x) -> slope(x) and its divergence per sample, (B,)
Divergence = Callable[[Callable[[Tensor], Tensor], Tensor], tuple[Tensor, Tensor]]


def exact_divergence(slope: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns slope(x) and its exact divergence (B,), with one backward pass per element of a sample: for low
    dimensions."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = slope(x)
        flat = value.flatten(1)
        rows = [
            torch.autograd.grad(flat[:, i].sum(), x, retain_graph=True)[0].flatten(1)[:, i]
            for i in range(flat.shape[1])
        ]
    return value.detach(), torch.stack(rows).sum(0)


class Hutchinson:
    """Hutchinson's estimator z . (d slope / dx) z with the fixed signs of z (B, ...): an unbiased estimate of the
    divergence at the cost of one backward pass (Grathwohl et al. 2019, arXiv:1810.01367, eq. 7)."""

    def __init__(self, z: Tensor) -> None:
        self.signs = torch.where(z < 0, -1.0, 1.0).to(z)

    def __call__(self, slope: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = slope(x)
            (vjp,) = torch.autograd.grad((value * self.signs).sum(), x)
        return value.detach(), (vjp * self.signs).flatten(1).sum(1)


def log_likelihood(
    denoise: Denoise, x: Tensor, points: Sequence[Point], divergence: Divergence = exact_divergence
) -> Tensor:
    """Returns log p(x), (B,) float64 nats on the CPU, by the instantaneous change of variables along the ODE (Song et
    al. 2021, arXiv:2011.13456, eq. 39), integrated from data to noise with Heun's method.

    x: (B, ...) data. Integration starts from alpha x at the grid's last point with sigma > 0, where sigma should be
    small. At points[0], where noise should dominate, x is assumed to be N(0, sigma^2 + alpha^2), as for data of unit
    variance. Raises ValueError for a grid of fewer than 2 steps.
    """
    up = list(reversed([point for point in points if point.sigma > 0]))
    if len(up) < 2:
        raise ValueError(f"the likelihood needs a grid of at least 2 steps, not {len(points) - 1}")
    elements = x[0].numel()
    x = up[0].alpha * x
    log_det = torch.full((len(x),), elements * math.log(up[0].alpha), dtype=torch.float64)

    def at(point: Point) -> Callable[[Tensor], Tensor]:
        return lambda x: TIME.slope(denoise(x, point), point)

    for here, there in pairwise(up):
        dt = there.t - here.t
        slope, div = divergence(at(here), x)
        slope_there, div_there = divergence(at(there), x + dt * slope)
        x = x + dt * (slope + slope_there) / 2
        log_det += dt * (div + div_there).cpu().double() / 2
    std = up[-1].std
    prior = -x.cpu().double().flatten(1).square().sum(1) / (2 * std**2) - elements * math.log(
        std * math.sqrt(2 * math.pi)
    )
    return prior + log_det


def bits_per_dim(log_p: Tensor, elements: int, bin_width: float = 0.0) -> Tensor:
    """Returns log densities (B,) in nats as bits per element. bin_width: for data that was rounded to bins of this
    width and dequantized with uniform noise; the result is then that of the rounded data (2 / 255 for 8-bit images in
    [-1, 1])."""
    width = math.log2(bin_width) if bin_width else 0.0
    return -log_p / (elements * math.log(2)) - width
