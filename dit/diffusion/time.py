"""Times: the densities p(t) of training and the time grids of sampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit.diffusion.path import Path, Point

# Densities and grids that use only times work on any `Process`; those that use alpha and sigma need a `Path`.

# --- training: a density is (path, u) -> t, its quantile function, for u (B,) float64 in (0, 1) and t (B,) in [0, 1].
#     The caller draws u: keyed, and stratified if the objective says so.

Density = Callable[[Any, Tensor], Tensor]


class Uniform:
    """The uniform density, t ~ U(0, 1)."""

    def __call__(self, path: Path, u: Tensor) -> Tensor:
        return u


class UniformIndex:
    """Uniform over the times (k + 1) / total, k < total: the indices of a chain of betas (Ho et al. 2020)."""

    def __init__(self, total: int = 1000) -> None:
        self.total = total

    def __call__(self, path: Path, u: Tensor) -> Tensor:
        return ((u * self.total).floor() + 1) / self.total


class LogitNormal:
    """The logit-normal density, logit(t) ~ N(mean, std^2) (Esser et al. 2024, arXiv:2403.03206, eq. 19)."""

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        self.mean, self.std = mean, std

    def __call__(self, path: Path, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


class Mode:
    """Mode sampling: more mass in the middle for scale > 0 and at the ends for scale < 0 (Esser et al. 2024, eq. 20).

    scale: in [-1, 2 / (pi - 2)], where the function of u is monotone. Raises ValueError outside.
    """

    def __init__(self, scale: float = 1.29) -> None:
        if not -1 <= scale <= 2 / (math.pi - 2):
            raise ValueError(f"mode density: scale={scale} must be in [-1, {2 / (math.pi - 2):.3f}]")
        self.scale = scale

    def __call__(self, path: Path, u: Tensor) -> Tensor:
        v = 1 - u  # the paper's function decreases with u
        return 1 - v - self.scale * (torch.cos(math.pi / 2 * v).square() - 1 + v)


class CosMap:
    """The density that gives log-SNR the cosine path's distribution on the linear path (Esser et al. 2024, eq. 21)."""

    def __call__(self, path: Path, u: Tensor) -> Tensor:
        return 1 - 1 / (torch.tan(math.pi / 2 * u) + 1)


class LogNormalSigma:
    """EDM's density, on any path: log(sigma / alpha) ~ N(mean, std^2) (Karras et al. 2022, arXiv:2206.00364)."""

    def __init__(self, mean: float = -1.2, std: float = 1.2) -> None:
        self.mean, self.std = mean, std

    def __call__(self, path: Path, u: Tensor) -> Tensor:
        return path.time(-(self.mean + self.std * torch.special.ndtri(u)))


class ShiftedDensity:
    """Another density shifted towards noise: its log(alpha / sigma) is lower by log(factor) (`Path.shifted`)."""

    def __init__(self, density: Density, factor: float) -> None:
        self.density, self.factor = density, factor

    def __call__(self, path: Path, u: Tensor) -> Tensor:
        return path.shifted(self.density(path, u), self.factor)


# --- sampling: a grid is (path, steps) -> steps + 1 points, from noise to t = 0

Grid = Callable[[Any, int], list[Any]]


def points_at(path: Path, times: Tensor) -> list[Point]:
    """Returns the points at descending times (n + 1,) float64. Raises ValueError if the times do not descend, or if one
    is between 0 and the path's first time."""
    listed = times.tolist()
    for step, (here, there) in enumerate(pairwise(listed)):
        if not here > there:
            raise ValueError(f"time grid does not descend: {here:g} then {there:g} at step {step}")
    last = min((t for t in listed if t > 0), default=1.0)
    if last < path.first * (1 - 1e-3):
        low = path.point(path.first)
        raise ValueError(
            f"the time grid contains t={last:.4g}, below the chain's first index at t={path.first:g}, where "
            f"sigma / alpha={low.sigma / low.alpha:.4g} and log-SNR={low.log_snr:.3g}: end the grid there (sigma_min "
            f"or highest), or use fewer steps"
        )
    return [path.point(t) for t in listed]


def points_of_log_snr(path: Path, log_snr: Tensor) -> list[Point]:
    """Returns the points at ascending values of log(alpha / sigma), (n,) float64, and t = 0. Raises ValueError if the
    path does not reach the lowest."""
    lowest, reached = float(log_snr[0]), path.point_of_log_snr(float(log_snr[0])).log_snr
    if abs(reached - lowest) > 1e-3:  # published sigmas are rounded
        raise ValueError(
            f"the time grid starts at log-SNR {lowest:.4g} (sigma / alpha = {math.exp(-lowest):.4g}), but the path "
            f"ends at {reached:.4g} ({math.exp(-reached):.4g}): start the grid within the path"
        )
    return points_at(path, torch.cat([path.time(log_snr), torch.zeros(1, dtype=torch.float64)]))


def check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps={steps}: sampling needs at least 1 step")


class UniformTime:
    """n + 1 equally spaced times from `start` to 0."""

    def __init__(self, start: float = 1.0) -> None:
        if not 0 < start <= 1:
            raise ValueError(f"start={start}: the start of a time grid must be in (0, 1]")
        self.start = start

    def __call__(self, path: Path, steps: int) -> list[Point]:
        check_steps(steps)
        return points_at(path, torch.linspace(self.start, 0, steps + 1, dtype=torch.float64))


class UniformLogSNR:
    """n times equally spaced in lambda = log(alpha / sigma), half the log-SNR, from `lowest` to `highest`, then 0
    (DPM-Solver, Lu et al. 2022)."""

    def __init__(self, lowest: float = -5.0, highest: float = 4.0) -> None:
        if not lowest < highest:
            raise ValueError(f"lowest={lowest} must be below highest={highest}: log-SNR grows as noise falls")
        self.lowest, self.highest = lowest, highest

    def __call__(self, path: Path, steps: int) -> list[Point]:
        check_steps(steps)
        return points_of_log_snr(path, torch.linspace(self.lowest, self.highest, steps, dtype=torch.float64))


def exponential(sigma_min: float = 0.002, sigma_max: float = 80.0) -> UniformLogSNR:
    """Returns a grid of n values of sigma / alpha in geometric progression, then 0: `UniformLogSNR` in other units."""
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigma_min={sigma_min} and sigma_max={sigma_max} must be positive and ascending")
    return UniformLogSNR(-math.log(sigma_max), -math.log(sigma_min))


class Karras:
    """n equally spaced values of (sigma / alpha)^(1 / rho), then 0 (Karras et al. 2022, arXiv:2206.00364, eq. 5)."""

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> None:
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"sigma_min={sigma_min} and sigma_max={sigma_max} must be positive and ascending")
        if not rho > 0:
            raise ValueError(f"rho={rho} must be positive")
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho

    def __call__(self, path: Path, steps: int) -> list[Point]:
        check_steps(steps)
        first, last = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        sigma = torch.linspace(first, last, steps, dtype=torch.float64) ** self.rho
        return points_of_log_snr(path, -sigma.log())


class AlignYourSteps:
    """A table of values of sigma / alpha, optimized for one model and interpolated log-linearly to any number of steps;
    the last value is replaced by 0 (Sabour et al. 2024, arXiv:2404.14507)."""

    def __init__(self, sigmas: Sequence[float]) -> None:
        if len(sigmas) < 2 or not all(a > b > 0 for a, b in pairwise(sigmas)):
            raise ValueError(f"sigmas={list(sigmas)} must be at least two positive numbers in descending order")
        self.sigmas = list(sigmas)

    def __call__(self, path: Path, steps: int) -> list[Point]:
        check_steps(steps)
        index = np.linspace(0, len(self.sigmas) - 1, steps + 1)[:-1]
        log_snr = -np.interp(index, np.arange(len(self.sigmas)), np.log(self.sigmas))
        return points_of_log_snr(path, torch.from_numpy(log_snr))


class Spaced:
    """n of the `total` indices of a chain of betas, then t = 0. Subclasses implement `indices`.

    Every step goes to the next index of the grid. (diffusers' DDIM subtracts `total // n` instead, which is the same
    only for leading indices.)
    """

    def __init__(self, total: int = 1000) -> None:
        self.total = total

    def indices(self, steps: int) -> np.ndarray:
        """Returns (steps,) descending indices in [0, total)."""
        raise NotImplementedError

    def __call__(self, path: Path, steps: int) -> list[Point]:
        check_steps(steps)
        if steps > self.total:
            raise ValueError(f"steps={steps} is more than the {self.total} indices of the grid")
        # A single step starts at the last index for every spacing: at another one the initial noise would not match.
        indices = self.indices(steps) if steps > 1 else np.array([self.total - 1])
        if indices.max() >= self.total:
            raise ValueError(f"steps={steps}: the grid reaches index {indices.max():.0f} of {self.total}: use fewer")
        times = (torch.from_numpy(indices).double() + 1) / self.total
        return points_at(path, torch.cat([times, torch.zeros(1, dtype=torch.float64)]))


class Leading(Spaced):
    """0, r, 2 r, ... with r = total // n, plus an offset (DDIM, Song et al. 2021; Stable Diffusion uses offset 1)."""

    def __init__(self, total: int = 1000, offset: int = 0) -> None:
        super().__init__(total)
        self.offset = offset

    def indices(self, steps: int) -> np.ndarray:
        return np.arange(steps)[::-1] * (self.total // steps) + self.offset


class Trailing(Spaced):
    """total - 1, total - 1 - r, ... with r = total / n, rounded: starts at pure noise (Lin et al. 2024)."""

    def indices(self, steps: int) -> np.ndarray:
        return np.round(np.arange(steps, 0, -1) * (self.total / steps)) - 1


class Respaced(Spaced):
    """n equally spaced indices from total - 1 to 0, both included, rounded: the respacing of improved DDPM and DiT."""

    def indices(self, steps: int) -> np.ndarray:
        return np.linspace(0, self.total - 1, steps).round()[::-1].copy()


class Linspace(Spaced):
    """The first n of n + 1 equally spaced indices from total - 1 to 0, rounded (DPM-Solver, Lu et al. 2022)."""

    def indices(self, steps: int) -> np.ndarray:
        return np.linspace(0, self.total - 1, steps + 1).round()[:0:-1].copy()


class ShiftedGrid:
    """Another grid shifted towards noise: its log(alpha / sigma) is lower by log(factor) (`Path.shifted`)."""

    def __init__(self, grid: Grid, factor: float) -> None:
        self.grid, self.factor = grid, factor

    def __call__(self, path: Path, steps: int) -> list[Point]:
        times = torch.tensor([point.t for point in self.grid(path, steps)], dtype=torch.float64)
        return points_at(path, path.shifted(times, self.factor))
