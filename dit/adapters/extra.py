"""An adapter that adds numeric conditions to a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from dit.layers.embeddings import TimeEmbedding, sinusoid

USUAL = 1000.0  # the clock of ordinary networks: their time conditioning is 1000 t
SMALLEST = 1e-4  # singular values below this share of the largest are left out of the fit, so that weights stay small


class ExtraConditions:
    """Adds conditions to a backbone: entries of `Condition.extra`, (B,) each, such as a second time or guidance scale.

    Each entry gets an embedding like that of the time, and both are added. The new embedding is initially zero, so
    that the network's output is unchanged. absent: the values of entries where a condition has none.

    clock: with a number c, the network, whose time is 1000 t, gets c t instead, and the time embedding is refitted
    (`slow_clock`), which changes its output a little: a smaller derivative with respect to t. Raises ValueError for a
    backbone without a `time` embedding, for a value of another entry, and for a clock that is not in (0, 1000).
    """

    def __init__(
        self, names: Sequence[str], absent: Mapping[str, float] | None = None, clock: float | None = None
    ) -> None:
        if clock is not None and not 0 < clock < USUAL:
            raise ValueError(
                f"adapter.clock={clock:g} must be between 0 and {USUAL:g}, the usual clock, or null for it"
            )
        self.names, self.absent, self.clock = list(names), dict(absent or {}), clock
        unknown = sorted(set(self.absent) - set(self.names))
        if unknown:
            raise ValueError(f"adapter.absent has {unknown[0]}, which is not in adapter.names={self.names}")

    def __call__(self, network: nn.Module) -> nn.Module:
        """Returns the same network, with the new embeddings; those that it has already stay as they are. A network on
        the meta device gets the clock without a fit: its weights come later."""
        time = getattr(network, "time", None)
        if not isinstance(time, TimeEmbedding):
            raise ValueError(f"{type(network).__name__} has no time embedding, which {', '.join(self.names)} need")
        if self.clock is not None and time.rate == 1:
            if time.up.weight.is_meta:
                time.rate = self.clock / USUAL
            else:
                time.fit_error = slow_clock(time, self.clock / USUAL)
        for name in [name for name in self.names if name not in time.extra]:
            added = TimeEmbedding(time.down.out_features, time.frequencies, time.shift).to(time.down.weight)
            nn.init.zeros_(added.down.weight)
            nn.init.zeros_(added.down.bias)
            time.extra[name] = added
        time.absent |= self.absent
        return network

    def of_adapter(self, network: nn.Module) -> nn.Module:
        """Returns the same network, with the new embeddings as parts of a low-rank adapter, which scales them."""
        if self.clock is not None:
            raise ValueError(
                f"adapter.conditions.clock={self.clock:g} changes a weight of the base, which an adapter leaves as it "
                f"is: say null, or adapter=flow_map"
            )
        network = self(network)
        time = network.time
        assert isinstance(time, TimeEmbedding)
        time.factors |= dict.fromkeys(self.names, 1.0)
        return network

    def merge(self, network: nn.Module) -> nn.Module:
        """Raises ValueError: no other library's network has these conditions."""
        raise ValueError(f"the network is conditioned on {', '.join(self.names)}, which no other library supports")


@torch.no_grad()
def slow_clock(time: TimeEmbedding, rate: float) -> float:
    """Multiplies the time of an embedding by a rate below 1, and sets its first layer to the least-squares fit of that
    layer's outputs before, over times from 0 to 1000. Fast changes with the time cannot be fitted and are left out.

    Returns the error of the embedding's vectors: the root mean square of their change, divided by that of their
    distance from their mean."""
    times = torch.linspace(0, USUAL, 4001)  # several for each period of the fastest sinusoid
    weight = time.up.weight
    old = time.up(sinusoid(times, time.frequencies, shift=time.shift).to(weight))
    before = time(times.to(weight.device))
    slow = sinusoid(rate * times, time.frequencies, shift=time.shift).double()
    slow = torch.cat([slow, torch.ones(len(times), 1, dtype=torch.float64)], dim=1)
    fit = torch.linalg.lstsq(slow, old.double().cpu(), rcond=SMALLEST, driver="gelsd").solution
    weight.copy_(fit[:-1].T)
    time.up.bias.copy_(fit[-1])
    time.rate = rate
    change, spread = time(times.to(weight.device)) - before, before - before.mean(0)
    return float(change.norm() / spread.norm())
