"""How probable data is under a denoiser: log-likelihood by the probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from dit.diffusion.denoiser import Denoise
from dit.diffusion.path import Point
from dit.diffusion.sampler.runge_kutta import TIME

# (slope, x) -> slope(x) and its divergence for each sample, (B,)
Divergence = Callable[[Callable[[Tensor], Tensor], Tensor], tuple[Tensor, Tensor]]


def exact_divergence(slope: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """By one gradient for each of a sample's elements: for few dimensions."""
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
    """z . (d slope / dx) z with fixed random signs z (B, ...): an unbiased estimate of the divergence at the cost of
    one gradient (Grathwohl et al. 2019, arXiv:1810.01367, eq. 7)."""

    def __init__(self, z: Tensor) -> None:
        self.signs = torch.where(z < 0, -1.0, 1.0).to(z)

    def __call__(self, slope: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = slope(x)
            (pulled,) = torch.autograd.grad((value * self.signs).sum(), x)
        return value.detach(), (pulled * self.signs).flatten(1).sum(1)


def log_likelihood(
    denoise: Denoise, x: Tensor, points: Sequence[Point], divergence: Divergence = exact_divergence
) -> Tensor:
    """(B,) float64 nats on the CPU: log p(x) by the instantaneous change of variables along the ODE (Song et al. 2021,
    arXiv:2011.13456, eq. 39), with Heun's method up a grid.

    x: (B, ...) data; alpha x is taken to lie at the grid's last point with noise, which should be little. At points[0]
    the data should be drowned in noise: there x is taken for N(0, sigma^2 + alpha^2), as data of unit variance gives.
    """
    up = list(reversed([point for point in points if point.sigma > 0]))
    if len(up) < 2:
        raise ValueError(f"the likelihood needs a grid of at least 2 steps, not {len(points) - 1}")
    elements = x[0].numel()
    x = up[0].alpha * x
    gained = torch.full((len(x),), elements * math.log(up[0].alpha), dtype=torch.float64)

    def at(point: Point) -> Callable[[Tensor], Tensor]:
        return lambda x: TIME.slope(denoise(x, point), point)

    for here, there in pairwise(up):
        dt = there.t - here.t
        slope, diverged = divergence(at(here), x)
        ahead, diverged_ahead = divergence(at(there), x + dt * slope)
        x = x + dt * (slope + ahead) / 2
        gained += dt * (diverged + diverged_ahead).cpu().double() / 2
    std = up[-1].std
    prior = -x.cpu().double().flatten(1).square().sum(1) / (2 * std**2) - elements * math.log(
        std * math.sqrt(2 * math.pi)
    )
    return prior + gained


def bits_per_dim(log_p: Tensor, elements: int, bin_width: float = 0.0) -> Tensor:
    """Nats of densities (B,) as bits for each of a sample's elements. With a bin width, for data that was rounded to
    bins of it and made continuous by uniform noise within, the bits of the rounded data (2 / 255 for 8-bit pictures in
    [-1, 1])."""
    width = math.log2(bin_width) if bin_width else 0.0
    return -log_p / (elements * math.log(2)) - width
