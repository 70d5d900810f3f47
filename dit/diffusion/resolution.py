"""The timestep shift by resolution: one function of the number of latent cells for training, previews and evaluation.

A larger image needs more noise to destroy the same structure. Both rules below give the factor of `Path.shifted`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor

from dit.diffusion.time import Density, Grid, ShiftedDensity, ShiftedGrid

Shift = Callable[[int], float]  # latent cells, height x width -> factor
Part = TypeVar("Part")
UNRESOLVED = "a shift by resolution needs the shape of the latents: call at_shape first"


def sqrt_shift(cells: int, base: int = 1024) -> float:
    """Returns sqrt(cells / base): no shift at `base` cells (Esser et al. 2024, arXiv:2403.03206, eq. 23)."""
    return math.sqrt(cells / base)


def exponential_shift(
    cells: int, low: float = 0.5, high: float = 1.15, cells_low: int = 1024, cells_high: int = 16384
) -> float:
    """Returns exp(mu) with mu linear in the cells, `low` at `cells_low` and `high` at `cells_high`: FLUX's dynamic
    shift, whose 256 and 4096 tokens are of 2 x 2 cells."""
    share = (cells - cells_low) / (cells_high - cells_low)
    return math.exp(low + share * (high - low))


def empirical_shift(cells: int, steps: int) -> float:
    """Returns FLUX.2's factor: exp(mu) with mu linear in the cells, whose slope and offset are fitted for 10 and for
    200 steps and linear in between; above 4300 cells always those of 200 steps."""
    many = 0.00016927 * cells + 0.45666666
    few = 8.73809524e-05 * cells + 1.89833333
    return math.exp(many if cells > 4300 else many + (many - few) * (steps - 200) / 190)


class ResolutionDensity:
    """Another density, shifted towards noise by the resolution of each batch."""

    def __init__(self, density: Density, shift: Shift) -> None:
        self.density, self.shift = density, shift

    def at(self, cells: int) -> Density:
        return ShiftedDensity(self.density, self.shift(cells))

    def __call__(self, path: Any, u: Tensor) -> Tensor:
        """Raises ValueError: `at_shape` returns the density of a resolution."""
        raise ValueError(UNRESOLVED)


class ResolutionGrid:
    """Another time grid, shifted towards noise by the resolution of the sampled images."""

    def __init__(self, grid: Grid, shift: Shift) -> None:
        self.grid, self.shift = grid, shift

    def at(self, cells: int) -> Grid:
        return ShiftedGrid(self.grid, self.shift(cells))

    def __call__(self, path: Any, steps: int) -> list[Any]:
        """Raises ValueError: `at_shape` returns the grid of a resolution."""
        raise ValueError(UNRESOLVED)


class EmpiricalGrid(ResolutionGrid):
    """Another time grid, shifted towards noise by the resolution and the number of steps (`empirical_shift`)."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def at(self, cells: int) -> Grid:
        return lambda path, steps: ShiftedGrid(self.grid, empirical_shift(cells, steps))(path, steps)


def at_shape(part: Part, shape: Sequence[int]) -> Part:
    """Returns a density or a grid for latents of a shape (C, ..., H, W): itself unless it depends on the resolution."""
    if isinstance(part, ResolutionDensity | ResolutionGrid):
        return part.at(math.prod(shape[1:]))  # type: ignore[return-value]
    return part
