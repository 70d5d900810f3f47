"""The interface of a noise process and of a network output, as training and sampling use them.

Gaussian paths (`dit.diffusion.path.Path`) with their predictions implement these protocols. Any other pair that
implements them, such as a masking process on tokens with a prediction of logits, works with `Objective`, `Pipeline`,
the ancestral sampler and classifier-free guidance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from dit.types import Condition, Network


class ProcessPoint(Protocol):
    """A point between data (t = 0) and prior (t = 1). t is a float, or (B,) float64 with one time per sample."""

    t: Any

    def repeat(self, times: int) -> Any:
        """Returns the point of a batch that is repeated `times` times."""
        ...


class ProcessEstimate(Protocol):
    """An estimate of the clean data, for a batch."""

    def chunk(self, parts: int) -> list[Self]:
        """Returns the estimates of equal parts of the batch."""
        ...

    def lerp(self, other: Self, weight: Any) -> Self:
        """Returns self + weight (other - self), for guidance. Each process defines in which space this is linear."""
        ...


class Process(Protocol):
    """A process that adds noise to data, and its reverse. Random numbers are keyed: by a generator per sample in
    training, by the sample's seed in sampling."""

    first: float  # the smallest time above 0 at which a network is evaluated

    def point(self, t: Any) -> Any:
        """Returns the point at a time, or at (B,) times."""
        ...

    def training_noise(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Returns the random numbers that corrupt one sample of this shape, on the CPU."""
        ...

    def corrupt(self, x0: Tensor, noise: Tensor, point: Any) -> Tensor:
        """Returns x_t, from data (B, ...) and the random numbers of B samples."""
        ...

    def sampling_noise(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> Any:
        """Returns the random numbers of sampling, keyed by the seeds: the `noise` argument of samplers."""
        ...

    def prior(self, point: Any, noise: Any) -> Tensor:
        """Returns the initial x (B, *shape) of a grid that starts at this point."""
        ...

    def step(self, estimate: Any, x: Tensor, here: Any, there: Any, noise: Any) -> Tensor:
        """Returns x at `there` after one ancestral step from x at `here`, given the estimate at `here`."""
        ...


class NetworkOutput(Protocol):
    """What a network predicts, and how it is called. outputs: the number of output channels per channel of x."""

    outputs: int

    def call_network(self, network: Network, x: Tensor, point: Any, condition: Condition) -> Tensor:
        """Returns the network output at x."""
        ...

    def blank_output(self, x: Tensor) -> Tensor:
        """Returns an output of the right shape, to check a recipe before the network is called."""
        ...

    def estimate(self, x: Tensor, y: Tensor, point: Any) -> Any:
        """Returns the estimate of the clean data for the output y at x."""
        ...

    def loss(self, output: Tensor, x0: Tensor, noise: Tensor, point: Any, weight: Any = 1.0) -> Tensor:
        """Returns (B,) float32 losses of an output at `corrupt(x0, noise, point)`."""
        ...
