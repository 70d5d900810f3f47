"""`Denoiser`, the only interface through which samplers and guidance call a network."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from dit.diffusion.path import Point
from dit.diffusion.prediction import Estimate
from dit.diffusion.process import NetworkOutput, Process
from dit.types import Condition, Network

Denoise = Callable[[Tensor, Point], Estimate]


class Denoiser:
    """A function of (x, point, condition) that returns an `Estimate`. `rows` counts the samples that networks have
    evaluated: network evaluations times batch size."""

    def __init__(self, network: Network, path: Process, prediction: NetworkOutput) -> None:
        self.network, self.path, self.prediction = network, path, prediction
        self.rows = 0

    def __call__(self, x: Tensor, point: Point, condition: Condition, network: Network | None = None) -> Estimate:
        """Evaluates `network`, or the denoiser's own if it is None, with the same path and prediction."""
        self.rows += len(x)
        x = x.float() if x.dtype.itemsize < 4 else x
        y = self.prediction.call_network(network or self.network, x, point, condition)
        return self.prediction.estimate(x, y, point)
