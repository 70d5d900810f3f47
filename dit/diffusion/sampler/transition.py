"""The one step that samplers are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from dit.diffusion.denoiser import Denoise
from dit.diffusion.path import Point
from dit.diffusion.prediction import Estimate

Draw = Callable[[int], Tensor]


class Sampler(Protocol):
    """Walks x from points[0] down to points[-1]; `noise(k)` is the k-th fresh draw of x's shape."""

    def __call__(self, denoise: Denoise, x: Tensor, points: Sequence[Point], noise: Draw) -> Tensor: ...


def transition(estimate: Estimate, there: Point, fresh: float = 0.0, z: Tensor | None = None) -> Tensor:
    """x' = alpha' x0 + sqrt(sigma'^2 - s^2) eps + s z: a jump along an estimate, a part s of the noise made fresh."""
    if fresh == 0 or z is None:
        return there.alpha * estimate.x0 + there.sigma * estimate.eps
    kept = math.sqrt(max(there.sigma**2 - fresh**2, 0.0))
    return there.alpha * estimate.x0 + kept * estimate.eps + fresh * z


def shrink(here: Point, there: Point) -> float:
    """e^(-h) = (alpha / alpha') (sigma' / sigma), with h = lambda' - lambda; a quotient, so no digits cancel."""
    return (here.alpha / there.alpha) * (there.sigma / here.sigma)
