"""Times: the densities p(t) that training draws from, and the grids that sampling walks down."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit.diffusion.path import Path, Point

# --- A density and a grid work on a `Process`: those that need no more than its times on any, the others on a `Path`.

# --- training: a density is (path, u) -> t, its quantile function: u (B,) in (0, 1), float64, so any u will do, keyed
#     or stratified, and t (B,) in [0, 1]

Density = Callable[[Any, Tensor], Tensor]


class Uniform:
    """t ~ U(0, 1)."""

    def __call__(self, path: Path, u: Tensor) -> Tensor:
        return u


class UniformIndex:
    """Each of the times (k + 1) / total equally often: the indices of a chain of betas (Ho et al. 2020)."""

    def __init__(self, total: int = 1000) -> None:
        self.total = total

    def __call__(self, path: Path, u: Tensor) -> Tensor:
        return ((u * self.total).floor() + 1) / self.total


class LogitNormal:
    """logit(t) ~ N(mean, std^2) (Stable Diffusion 3, Esser et al. 2024, arXiv:2403.03206, eq. 19)."""

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        self.mean, self.std = mean, std

    def __call__(self, path: Path, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


class Mode:
    """Heavier in the middle for scale > 0 and at the ends for scale < 0 (Esser et al. 2024, eq. 20).

    scale: in [-1, 2 / (pi - 2)], where the map of u is monotone.
    """

    def __init__(self, scale: float = 1.29) -> None:
        if not -1 <= scale <= 2 / (math.pi - 2):
            raise ValueError(f"mode density: scale={scale} must lie in [-1, {2 / (math.pi - 2):.3f}]")
        self.scale = scale

    def __call__(self, path: Path, u: Tensor) -> Tensor:
        v = 1 - u  # the paper's map falls with u
        return 1 - v - self.scale * (torch.cos(math.pi / 2 * v).square() - 1 + v)


class CosMap:
    """The density that gives the linear path the log-SNR of the cosine path (Esser et al. 2024, eq. 21)."""

    def __call__(self, path: Path, u: Tensor) -> Tensor:
        return 1 - 1 / (torch.tan(math.pi / 2 * u) + 1)


class LogNormalSigma:
    """log(sigma / alpha) ~ N(mean, std^2) on any path (Karras et al. 2022, arXiv:2206.00364, table 1)."""

    def __init__(self, mean: float = -1.2, std: float = 1.2) -> None:
        self.mean, self.std = mean, std

    def __call__(self, path: Path, u: Tensor) -> Tensor:
        return path.time(-(self.mean + self.std * torch.special.ndtri(u)))


class ShiftedDensity:
    """Another density moved towards the noise, its log-SNR lower by log(factor): `Path.shifted`."""

    def __init__(self, density: Density, factor: float) -> None:
        self.density, self.factor = density, factor

    def __call__(self, path: Path, u: Tensor) -> Tensor:
        return path.shifted(self.density(path, u), self.factor)


# --- sampling: a grid is (path, steps) -> steps + 1 points, from the noise down to t = 0

Grid = Callable[[Any, int], list[Any]]


def points_at(path: Path, times: Tensor) -> list[Point]:
    """Times, (n + 1,) float64 and descending, as points. Raises ValueError where they do not descend."""
    listed = times.tolist()
    for place, (here, there) in enumerate(pairwise(listed)):
        if not here > there:
            raise ValueError(f"time grid does not descend: {here:g} then {there:g} at step {place}")
    last = min((t for t in listed if t > 0), default=1.0)
    if last < path.first * (1 - 1e-3):
        low = path.point(path.first)
        raise ValueError(
            f"the time grid asks for t={last:.4g}, below the chain's first index at t={path.first:g}, where "
            f"sigma / alpha={low.sigma / low.alpha:.4g} and log-SNR={low.log_snr:.3g}: end it there (sigma_min or "
            f"highest), or take fewer steps"
        )
    return [path.point(t) for t in listed]


def points_of_log_snr(path: Path, log_snr: Tensor) -> list[Point]:
    """Log-SNR values, (n,) float64 and ascending, as points, and then t = 0. Raises ValueError where the path does not
    reach the lowest."""
    lowest, reached = float(log_snr[0]), path.point_of_log_snr(float(log_snr[0])).log_snr
    if abs(reached - lowest) > 1e-3:  # published sigmas are rounded
        raise ValueError(
            f"the time grid starts at log-SNR {lowest:.4g} (sigma / alpha = {math.exp(-lowest):.4g}), but the path "
            f"ends at {reached:.4g} ({math.exp(-reached):.4g}); start the grid within the path"
        )
    return points_at(path, torch.cat([path.time(log_snr), torch.zeros(1, dtype=torch.float64)]))


def check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps={steps}: sampling needs at least 1 step")


class UniformTime:
    """n + 1 times equally spaced from `start` down to 0."""

    def __init__(self, start: float = 1.0) -> None:
        if not 0 < start <= 1:
            raise ValueError(f"start={start}: a time grid starts in (0, 1]")
        self.start = start

    def __call__(self, path: Path, steps: int) -> list[Point]:
        check_steps(steps)
        return points_at(path, torch.linspace(self.start, 0, steps + 1, dtype=torch.float64))


class UniformLogSNR:
    """n times equally spaced in lambda = log(alpha / sigma), half the log-SNR, between two bounds, then 0 (DPM-Solver,
    Lu et al. 2022)."""

    def __init__(self, lowest: float = -5.0, highest: float = 4.0) -> None:
        if not lowest < highest:
            raise ValueError(f"lowest={lowest} must be below highest={highest}: log-SNR grows as noise falls")
        self.lowest, self.highest = lowest, highest

    def __call__(self, path: Path, steps: int) -> list[Point]:
        check_steps(steps)
        return points_of_log_snr(path, torch.linspace(self.lowest, self.highest, steps, dtype=torch.float64))


def exponential(sigma_min: float = 0.002, sigma_max: float = 80.0) -> UniformLogSNR:
    """n values of sigma / alpha in geometric sequence, then 0: uniform in log-SNR, by another name."""
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigma_min={sigma_min} and sigma_max={sigma_max} must be positive and ascending")
    return UniformLogSNR(-math.log(sigma_max), -math.log(sigma_min))


class Karras:
    """n values of (sigma / alpha)^(1 / rho) equally spaced, then 0 (Karras et al. 2022, arXiv:2206.00364, eq. 5)."""

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
    """A table of n values of sigma / alpha, best found for one model, interpolated geometrically to any number of
    steps; its last value gives way to 0 (Sabour et al. 2024, arXiv:2404.14507)."""

    def __init__(self, sigmas: Sequence[float]) -> None:
        if len(sigmas) < 2 or not all(a > b > 0 for a, b in pairwise(sigmas)):
            raise ValueError(f"sigmas={list(sigmas)} must be at least two positive numbers that fall")
        self.sigmas = list(sigmas)

    def __call__(self, path: Path, steps: int) -> list[Point]:
        check_steps(steps)
        places = np.linspace(0, len(self.sigmas) - 1, steps + 1)[:-1]
        log_snr = -np.interp(places, np.arange(len(self.sigmas)), np.log(self.sigmas))
        return points_of_log_snr(path, torch.from_numpy(log_snr))


class Spaced:
    """n of the `total` indices of a chain of betas, then t = 0. Subclasses give `indices`.

    Every step goes to the next index of the grid. (diffusers' DDIM goes `total // n` down instead, which is the same
    for leading indices alone.)
    """

    def __init__(self, total: int = 1000) -> None:
        self.total = total

    def indices(self, steps: int) -> np.ndarray:
        """(steps,) descending, in [0, total)."""
        raise NotImplementedError

    def __call__(self, path: Path, steps: int) -> list[Point]:
        check_steps(steps)
        if steps > self.total:
            raise ValueError(f"steps={steps} is more than the {self.total} indices of the grid")
        # A single step starts at the noisy end, whatever the spacing: from anywhere else it would start from noise of
        # the wrong size.
        indices = self.indices(steps) if steps > 1 else np.array([self.total - 1])
        if indices.max() >= self.total:
            raise ValueError(f"steps={steps}: the grid reaches index {indices.max():.0f} of {self.total}; take fewer")
        times = (torch.from_numpy(indices).double() + 1) / self.total
        return points_at(path, torch.cat([times, torch.zeros(1, dtype=torch.float64)]))


class Leading(Spaced):
    """0, r, 2 r, ... with r = total // n, plus an offset (DDIM, Song et al. 2021; Stable Diffusion has offset 1)."""

    def __init__(self, total: int = 1000, offset: int = 0) -> None:
        super().__init__(total)
        self.offset = offset

    def indices(self, steps: int) -> np.ndarray:
        return np.arange(steps)[::-1] * (self.total // steps) + self.offset


class Trailing(Spaced):
    """total - 1, total - 1 - r, ... with r = total / n, rounded: it starts at pure noise (Lin et al. 2024)."""

    def indices(self, steps: int) -> np.ndarray:
        return np.round(np.arange(steps, 0, -1) * (self.total / steps)) - 1


class Respaced(Spaced):
    """From total - 1 to 0, both within, equally spaced and rounded: the respacing of improved DDPM and DiT."""

    def indices(self, steps: int) -> np.ndarray:
        return np.linspace(0, self.total - 1, steps).round()[::-1].copy()


class Linspace(Spaced):
    """As if respaced to n + 1 indices, without the last, 0 (DPM-Solver, Lu et al. 2022)."""

    def indices(self, steps: int) -> np.ndarray:
        return np.linspace(0, self.total - 1, steps + 1).round()[:0:-1].copy()


class ShiftedGrid:
    """Another grid moved towards the noise, its log-SNR lower by log(factor): `Path.shifted`."""

    def __init__(self, grid: Grid, factor: float) -> None:
        self.grid, self.factor = grid, factor

    def __call__(self, path: Path, steps: int) -> list[Point]:
        times = torch.tensor([point.t for point in self.grid(path, steps)], dtype=torch.float64)
        return points_at(path, path.shifted(times, self.factor))
