"""Times: the densities p(t) that training draws from, and the grids that sampling walks down."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from dit.diffusion.path import Path, Point

# --- training: a density is its quantile function, u in (0, 1) -> t in (0, 1), so any u will do: keyed or stratified


class Uniform:
    """t ~ U(0, 1)."""

    def __call__(self, u: Tensor) -> Tensor:
        return u


class LogitNormal:
    """logit(t) ~ N(mean, std^2) (Stable Diffusion 3, Esser et al. 2024, arXiv:2403.03206, eq. 19)."""

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        self.mean, self.std = mean, std

    def __call__(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u.double())).to(u.dtype)


# --- sampling: a grid is (path, steps) -> steps + 1 points, from the noise down to t = 0


def points_at(path: Path, times: Tensor) -> list[Point]:
    """Times, (n + 1,) float64 and descending, as points. Raises ValueError where they do not descend."""
    listed = times.tolist()
    for place, (here, there) in enumerate(pairwise(listed)):
        if not here > there:
            raise ValueError(f"time grid does not descend: {here:g} then {there:g} at step {place}")
    return [path.point(t) for t in listed]


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
    """n times equally spaced in log(alpha / sigma) between two bounds, then 0 (DPM-Solver, Lu et al. 2022)."""

    def __init__(self, lowest: float = -5.0, highest: float = 4.0) -> None:
        if not lowest < highest:
            raise ValueError(f"lowest={lowest} must be below highest={highest}: log-SNR grows as noise falls")
        self.lowest, self.highest = lowest, highest

    def __call__(self, path: Path, steps: int) -> list[Point]:
        check_steps(steps)
        log_snr = torch.linspace(self.lowest, self.highest, steps, dtype=torch.float64)
        return points_at(path, torch.cat([path.time(log_snr), torch.zeros(1, dtype=torch.float64)]))
