"""An adapter that adds numeric conditions to a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from dit.layers.embeddings import TimeEmbedding


class ExtraConditions:
    """Adds conditions to a backbone: entries of `Condition.extra`, (B,) each, such as a second time or guidance scale.

    Each entry gets an embedding like that of the time, and both are added. The new embedding is initially zero, so
    that the network's output is unchanged. absent: the values of entries where a
    condition has none. Raises ValueError for a backbone without a `time` embedding, and for a value of another entry.
    """

    def __init__(self, names: Sequence[str], absent: Mapping[str, float] | None = None) -> None:
        self.names, self.absent = list(names), dict(absent or {})
        unknown = sorted(set(self.absent) - set(self.names))
        if unknown:
            raise ValueError(f"adapter.absent has {unknown[0]}, which is not in adapter.names={self.names}")

    def __call__(self, network: nn.Module) -> nn.Module:
        """Returns the same network, with the new embeddings; those that it has already stay as they are."""
        time = getattr(network, "time", None)
        if not isinstance(time, TimeEmbedding):
            raise ValueError(f"{type(network).__name__} has no time embedding, which {', '.join(self.names)} need")
        for name in [name for name in self.names if name not in time.extra]:
            added = TimeEmbedding(time.down.out_features, time.frequencies, time.shift).to(time.down.weight)
            nn.init.zeros_(added.down.weight)
            nn.init.zeros_(added.down.bias)
            time.extra[name] = added
        time.absent |= self.absent
        return network

    def of_adapter(self, network: nn.Module) -> nn.Module:
        """Returns the same network, with the new embeddings as parts of a low-rank adapter, which scales them."""
        network = self(network)
        time = network.time
        assert isinstance(time, TimeEmbedding)
        time.factors |= dict.fromkeys(self.names, 1.0)
        return network

    def merge(self, network: nn.Module) -> nn.Module:
        """Raises ValueError: no other library's network has these conditions."""
        raise ValueError(f"the network is conditioned on {', '.join(self.names)}, which no other library supports")
