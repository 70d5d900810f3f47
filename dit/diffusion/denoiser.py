"""The one way to call a network: samplers and guidance see `Denoiser` and nothing else of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dit.diffusion.path import Path, Point
from dit.diffusion.prediction import Estimate, Prediction
from dit.types import Condition

Network = Callable[[Tensor, Tensor, Condition], Tensor]
Denoise = Callable[[Tensor, Point], Estimate]


def network_time(t: Tensor) -> Tensor:
    """Path time in [0, 1] -> the network's time, 1000 t, the scale that sinusoidal embeddings expect."""
    return 1000 * t


class Denoiser:
    """(x, point, condition) -> Estimate(x0, eps). Counts in `rows` how many samples the network has evaluated."""

    def __init__(self, network: Network, path: Path, prediction: Prediction) -> None:
        self.network, self.path, self.prediction = network, path, prediction
        self.rows = 0

    def __call__(self, x: Tensor, point: Point, condition: Condition) -> Estimate:
        self.rows += len(x)
        time = network_time(torch.full((len(x),), point.t, device=x.device))
        y = self.network(x, time, condition)
        return self.prediction.estimate(x.float(), y.float(), point)
