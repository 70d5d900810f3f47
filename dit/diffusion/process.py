"""What training and sampling need of a noise process, and of what a network predicts on it.

Gaussian paths (`dit.diffusion.path.Path`) with their predictions fulfil these protocols. Any other pair that does, such
as a masking process on tokens with a prediction of logits, trains by `Objective`, samples by `Pipeline` with the
ancestral sampler, and is guided by classifier-free guidance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from dit.types import Condition, Network


class Place(Protocol):
    """A place between data (t = 0) and prior (t = 1): t is a float, or (B,) float64 with a time for each sample."""

    t: Any

    def repeat(self, times: int) -> Any:
        """For a batch that is repeated so many times."""
        ...


class Guess(Protocol):
    """What a network's output says of the clean data, for a batch."""

    def chunk(self, parts: int) -> list[Self]:
        """The guesses of equal parts of the batch."""
        ...

    def lerp(self, other: Self, weight: Any) -> Self:
        """self + weight (other - self): guidance, of which each process decides in which space it is linear."""
        ...


class Process(Protocol):
    """Noise that is added to data step by step, and its reverse. Random numbers are keyed: by a generator for each
    sample in training, by the sample's seed in sampling."""

    first: float  # the smallest time above 0 at which a network is evaluated

    def point(self, t: Any) -> Any:
        """The place at a time, or at (B,) times."""
        ...

    def training_noise(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """The random numbers that corrupt one sample of this shape, on the CPU."""
        ...

    def corrupt(self, x0: Tensor, noise: Tensor, point: Any) -> Tensor:
        """(B, ...) data and the random numbers of B samples -> x_t."""
        ...

    def sampling_noise(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> Any:
        """The random numbers of sampling, keyed by the seeds: what samplers get as `noise`."""
        ...

    def prior(self, point: Any, noise: Any) -> Tensor:
        """(B, *shape): where sampling starts if the grid begins at this point."""
        ...

    def step(self, estimate: Any, x: Tensor, here: Any, there: Any, noise: Any) -> Tensor:
        """One ancestral step: from x at `here` to `there`, given what the network says at `here`."""
        ...


class NetworkOutput(Protocol):
    """What a network predicts, and how it is called. outputs: channels of the output for each channel of x."""

    outputs: int

    def call_network(self, network: Network, x: Tensor, point: Any, condition: Condition) -> Tensor:
        """The network's output at x."""
        ...

    def blank_output(self, x: Tensor) -> Tensor:
        """An output of the right shape, to try a recipe with before a network is called."""
        ...

    def estimate(self, x: Tensor, y: Tensor, point: Any) -> Any:
        """The output y at x as a guess of the clean data."""
        ...

    def loss(self, output: Tensor, x0: Tensor, noise: Tensor, point: Any, weight: Any = 1.0) -> Tensor:
        """(B,) float32 losses of an output at `corrupt(x0, noise, point)`."""
        ...
