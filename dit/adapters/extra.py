"""Further numbers that a network is conditioned on."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dit.layers.embeddings import TimeEmbedding


class ExtraConditions:
    """Lets a backbone read further numbers of `Condition.extra`, (B,) each, such as a second time or a guidance scale.

    Each gets an embedding like that of the time, which is added to it. It begins as zero, so that the network computes
    at first what it computed before. Raises ValueError for a backbone without a `time` embedding.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)

    def __call__(self, network: nn.Module) -> nn.Module:
        """The same network, with more weights."""
        time = getattr(network, "time", None)
        if not isinstance(time, TimeEmbedding):
            raise ValueError(f"{type(network).__name__} has no time embedding to add {', '.join(self.names)} to")
        for name in self.names:
            added = TimeEmbedding(time.down.out_features, time.frequencies, time.shift).to(time.down.weight)
            nn.init.zeros_(added.down.weight)
            nn.init.zeros_(added.down.bias)
            time.extra[name] = added
        return network

    def merge(self, network: nn.Module) -> nn.Module:
        raise ValueError(f"the network reads {', '.join(self.names)} besides the time, which no other library's does")
