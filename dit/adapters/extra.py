"""An adapter that adds numeric conditions to a network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dit.layers.embeddings import TimeEmbedding


class ExtraConditions:
    """Adds conditions to a backbone: entries of `Condition.extra`, (B,) each, such as a second time or guidance scale.

    Each entry gets an embedding like that of the time, and both are added. The new embedding is initially zero, so
    that the network's output is unchanged. Raises ValueError for a backbone without a `time` embedding.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)

    def __call__(self, network: nn.Module) -> nn.Module:
        """Returns the same network, with the new embeddings."""
        time = getattr(network, "time", None)
        if not isinstance(time, TimeEmbedding):
            raise ValueError(f"{type(network).__name__} has no time embedding, which {', '.join(self.names)} need")
        for name in self.names:
            added = TimeEmbedding(time.down.out_features, time.frequencies, time.shift).to(time.down.weight)
            nn.init.zeros_(added.down.weight)
            nn.init.zeros_(added.down.bias)
            time.extra[name] = added
        return network

    def merge(self, network: nn.Module) -> nn.Module:
        """Raises ValueError: no other library's network has these conditions."""
        raise ValueError(f"the network is conditioned on {', '.join(self.names)}, which no other library supports")
