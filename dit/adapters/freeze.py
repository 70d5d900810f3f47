"""An adapter that freezes part of a network's weights."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn


class Freeze:
    """Freezes every parameter whose name matches none of the patterns of `trainable`, such as `*.attention.*`.

    Frozen weights have no gradients, no optimizer state and no EMA. Raises ValueError for a pattern that matches no
    parameter.
    """

    def __init__(self, trainable: Sequence[str]) -> None:
        self.trainable = list(trainable)

    def __call__(self, network: nn.Module) -> nn.Module:
        """Returns the same network."""
        names = [name for name, _ in network.named_parameters()]
        for pattern in self.trainable:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(
                    f"adapter.trainable={pattern} matches none of the {len(names)} weights of "
                    f"{type(network).__name__}, such as {names[0]} and {names[-1]}"
                )
        for name, parameter in network.named_parameters():
            matches = any(fnmatchcase(name, pattern) for pattern in self.trainable)
            parameter.requires_grad_(parameter.requires_grad and matches)
        return network

    def merge(self, network: nn.Module) -> nn.Module:
        """Returns the same network, as nothing was added."""
        return network
