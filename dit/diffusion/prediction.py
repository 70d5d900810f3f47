"""What a network predicts: y = a x0 + b eps. One pair (a, b) per prediction, one 2x2 solve for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dit.diffusion.path import Point


@dataclass(frozen=True)
class Estimate:
    """What a denoiser says of x_t: the clean x0 and the noise eps, both of x's shape, float32 or better."""

    x0: Tensor
    eps: Tensor


class Prediction:
    """Subclasses give `weights`: the pair (a, b) at a point."""

    def weights(self, point: Point) -> tuple[Any, Any]:
        raise NotImplementedError

    def target(self, x0: Tensor, eps: Tensor, point: Point) -> Tensor:
        """What the network should answer at x_t = alpha x0 + sigma eps."""
        a, b = self.weights(point)
        return a * x0 + b * eps

    def estimate(self, x: Tensor, y: Tensor, point: Point) -> Estimate:
        """Solves x = alpha x0 + sigma eps, y = a x0 + b eps for (x0, eps), at a point of floats.

        Raises ValueError where the two equations are one, as for eps where alpha = 0.
        """
        a, b = self.weights(point)
        det = point.alpha * b - point.sigma * a
        if abs(det) < 1e-12:
            raise ValueError(
                f"{type(self).__name__} prediction says nothing of x0 at t={point.t:g}, where alpha={point.alpha:g} "
                f"and sigma={point.sigma:g}; let the time grid start and end where it does, or predict v or flow"
            )
        return Estimate(x0=(b * x - point.sigma * y) / det, eps=(point.alpha * y - a * x) / det)


class X0(Prediction):
    """y = x0."""

    def weights(self, point: Point) -> tuple[Any, Any]:
        return 1.0, 0.0


class Eps(Prediction):
    """y = eps (DDPM, Ho et al. 2020, eq. 14)."""

    def weights(self, point: Point) -> tuple[Any, Any]:
        return 0.0, 1.0


class V(Prediction):
    """y = alpha eps - sigma x0 (Salimans and Ho 2022, arXiv:2202.00512)."""

    def weights(self, point: Point) -> tuple[Any, Any]:
        return -point.sigma, point.alpha


class Flow(Prediction):
    """y = dx_t/dt = alpha' x0 + sigma' eps, the velocity of the path (Lipman et al. 2023, arXiv:2210.02747)."""

    def weights(self, point: Point) -> tuple[Any, Any]:
        return point.d_alpha, point.d_sigma
