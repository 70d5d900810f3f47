"""Gaussian paths: x_t = alpha(t) x0 + sigma(t) eps, with t = 0 the data and t growing with noise.

A path is two functions of time; the log-SNR, its inverse and every sampler follow from them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Point:
    """One place on a path: time, alpha, sigma and their derivatives by t.

    Each is a float (one time for a whole batch, in samplers) or a tensor that broadcasts against x (in training).
    """

    t: Any
    alpha: Any
    sigma: Any
    d_alpha: Any
    d_sigma: Any

    @property
    def log_snr(self) -> float:
        """lambda = log(alpha / sigma), half the logarithm of the signal-to-noise ratio; for float points only."""
        if self.alpha == 0:
            return -math.inf
        return math.inf if self.sigma == 0 else math.log(self.alpha) - math.log(self.sigma)


class Path:
    """Subclasses give `coefficients`; t lies in [0, 1] and the prior at t = 1 is N(0, prior_std^2)."""

    prior_std = 1.0

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """t: any shape, float -> (alpha, sigma, d alpha/dt, d sigma/dt), each of t's shape."""
        raise NotImplementedError

    def point(self, t: Tensor | float) -> Point:
        """A tensor of times gives a point of tensors; a float gives a point of floats, computed in float64."""
        if isinstance(t, Tensor):
            return Point(t, *self.coefficients(t))
        values = self.coefficients(torch.tensor(float(t), dtype=torch.float64))
        return Point(float(t), *(float(v) for v in values))

    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of lambda(t) = log(alpha / sigma), by bisection in float64; subclasses may know better."""
        low = torch.zeros_like(log_snr, dtype=torch.float64)
        high = torch.ones_like(low)
        for _ in range(64):
            middle = (low + high) / 2
            alpha, sigma, *_ = self.coefficients(middle)
            less_noisy = alpha.log() - sigma.log() > log_snr
            low, high = torch.where(less_noisy, middle, low), torch.where(less_noisy, high, middle)
        return (low + high) / 2


class Linear(Path):
    """alpha = 1 - t, sigma = t: rectified flow (Liu et al. 2023, arXiv:2209.03003, eq. 1)."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        one = torch.ones_like(t)
        return 1 - t, t, -one, one

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr.double())


class Cosine(Path):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): variance preserving (Nichol and Dhariwal 2021, without offset)."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        half = math.pi / 2
        angle = half * t
        alpha, sigma = torch.cos(angle), torch.sin(angle)
        alpha = torch.where(t == 1, torch.zeros_like(alpha), alpha)
        return alpha, sigma, -half * sigma, half * alpha

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.atan(torch.exp(-log_snr.double())) * (2 / math.pi)


def linear_betas(steps: int, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """DDPM's betas (Ho et al. 2020, arXiv:2006.11239, section 4), (steps,) float64."""
    return torch.linspace(first, last, steps, dtype=torch.float64)


def cosine_betas(steps: int, offset: float = 0.008, largest: float = 0.999) -> Tensor:
    """Betas of the cosine schedule (Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 17), (steps,) float64."""
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    alpha_bar = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=largest)


class DiscreteBetas(Path):
    """A chain of T betas as a path: index k of 0..T-1 lies at t = (k + 1) / T, and t = 0 is exactly clean.

    Between indices alpha is interpolated linearly in t, and sigma = sqrt(1 - alpha^2).
    """

    def __init__(self, betas: Tensor) -> None:
        if betas.dim() != 1 or not bool(((betas > 0) & (betas <= 1)).all()):
            raise ValueError(f"betas of shape {tuple(betas.shape)} must be a vector of values in (0, 1]")
        alphas = (1 - betas.double()).cumprod(0).sqrt()
        self.alphas = torch.cat([torch.ones(1, dtype=torch.float64), alphas])
        self.steps = len(betas)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        table = self.alphas.to(t.device)
        place = t.double() * self.steps
        left = place.floor().clamp(0, self.steps - 1).long()
        slope = table[left + 1] - table[left]
        alpha = table[left] + slope * (place - left)
        d_alpha = slope * self.steps
        sigma = (1 - alpha**2).clamp(min=0).sqrt()
        d_sigma = -alpha * d_alpha / sigma.clamp(min=1e-12)
        return alpha.to(t.dtype), sigma.to(t.dtype), d_alpha.to(t.dtype), d_sigma.to(t.dtype)
