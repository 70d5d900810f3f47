"""`Denoiser`, the only interface through which samplers and guidance call a network, and wrappers of it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from dit.diffusion.path import Point
from dit.diffusion.prediction import Estimate
from dit.diffusion.process import NetworkOutput, Process
from dit.types import Condition, Network

Denoise = Callable[[Tensor, Point], Estimate]
Watch = Callable[[Point, Tensor, Estimate], object]  # of (point, x, estimate)


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


class SampledDenoiser(Denoiser):
    """A denoiser that calls every network through the wrapper that `change` returns for it."""

    def __init__(
        self, network: Network, path: Process, prediction: NetworkOutput, change: Callable[[Network], Network]
    ) -> None:
        super().__init__(network, path, prediction)
        self.change = change

    def __call__(self, x: Tensor, point: Point, condition: Condition, network: Network | None = None) -> Estimate:
        return super().__call__(x, point, condition, self.change(network or self.network))


def watched(denoise: Denoise, watch: Watch) -> Denoise:
    """Returns the same function, which also calls `watch` with every result."""

    def call(x: Tensor, point: Point) -> Estimate:
        estimate = denoise(x, point)
        watch(point, x, estimate)
        return estimate

    return call
