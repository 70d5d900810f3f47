"""The loss of one batch. It takes a network, data and chance, and knows nothing of trainers."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from dit.diffusion.denoiser import Network, network_time
from dit.diffusion.path import Path, Point
from dit.diffusion.prediction import Prediction
from dit.types import Condition

Weighting = Callable[[Point], Tensor | float]


def uniform(point: Point) -> float:
    """Every time weighs the same in the prediction's own units (L_simple, Ho et al. 2020, eq. 14)."""
    return 1.0


class Objective:
    """Mean squared error of a prediction on a path, with t drawn from a density."""

    def __init__(
        self,
        path: Path,
        prediction: Prediction,
        density: Callable[[Tensor], Tensor],
        weighting: Weighting = uniform,
    ) -> None:
        self.path, self.prediction, self.density, self.weighting = path, prediction, density, weighting

    def __call__(self, network: Network, x0: Tensor, condition: Condition, eps: Tensor, u: Tensor) -> Tensor:
        """x0, eps: (B, C, H, W) data and standard noise; u: (B,) uniform in (0, 1). Returns (B,) losses."""
        t = self.density(u)  # (B,)
        point = self.path.point(t.view(-1, *[1] * (x0.dim() - 1)))
        x = point.alpha * x0 + point.sigma * eps
        error = network(x, network_time(t), condition).float() - self.prediction.target(x0, eps, point)
        weighted = self.weighting(point) * error.square()
        return weighted.flatten(1).mean(1)
