"""Exponential moving averages of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import lightning as L
import torch
from torch import Tensor

from dit.training.after_step import AfterStep
from dit.training.parallel import gathered, placed_like, scatter, shard_of


class EMA(AfterStep):
    """Averages the trainable parameters after every optimizer step, in float32, and validates with the average.

    The decay at step n is min(decay, (1 + n) / (10 + n)), so that the initial weights are forgotten quickly. With a
    list of decays, each has its own average, one more copy of the weights; the first is used to validate and sample.
    Raises ValueError for a decay outside [0, 1), for an empty list, and for a decay given twice.
    """

    def __init__(self, decay: float | Sequence[float] = 0.999) -> None:
        decays = [decay] if isinstance(decay, int | float) else list(decay)
        if not decays or len(set(decays)) < len(decays) or not all(0 <= d < 1 for d in decays):
            raise ValueError(f"ema decay={decay} must be a number in [0, 1), or a list of different such numbers")
        self.decays = {f"ema_{d}": d for d in decays}
        self.averages: dict[str, dict[str, Tensor]] = {}  # by the names of the decays, then of the parameters
        self._raw: list[Tensor] | None = None

    @property
    def state_key(self) -> str:
        return "EMA"

    @staticmethod
    def trained(module: L.LightningModule) -> dict[str, Tensor]:
        """Returns the trainable parameters by name."""
        return {name: p for name, p in module.named_parameters() if p.requires_grad}

    @classmethod
    def shards(cls, module: L.LightningModule) -> list[Tensor]:
        """Returns the trainable parameters, of sharded ones this rank's part."""
        return [shard_of(p.detach()) for p in cls.trained(module).values()]

    @property
    def first(self) -> list[Tensor]:
        """Returns the average to sample with, in the order of `shards`."""
        return [shard_of(average) for average in next(iter(self.averages.values())).values()]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Moves the averages to the device, divided among the ranks as the parameters are. A decay that the checkpoint
        lacks starts from the checkpoint's first average."""
        super().on_train_start(trainer, pl_module)
        now = self.trained(pl_module)
        initial = next(iter(self.averages.values()), now)
        loaded = {name: self.averages.get(name, initial) for name in self.decays}
        self.averages = {
            name: {
                key: placed_like(p, weights[key].detach()).to(p.device, torch.float32, copy=True)
                for key, p in now.items()
            }
            for name, weights in loaded.items()
        }

    @torch.no_grad()
    def after_step(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        now = [shard.float() for shard in self.shards(module)]
        for name, decay in self.decays.items():
            now_decay = min(decay, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_([shard_of(average) for average in self.averages[name].values()], now, 1 - now_decay)

    @contextmanager
    def applied(self, module: L.LightningModule) -> Iterator[None]:
        """Context in which the module has the averaged weights. Its raw weights are restored exactly afterwards."""
        self.swap_in(module)
        try:
            yield
        finally:
            self.swap_out(module)

    @torch.no_grad()
    def swap_in(self, module: L.LightningModule) -> None:
        parameters = self.shards(module)
        self._raw = [p.clone() for p in parameters]
        torch._foreach_copy_(parameters, self.first)

    @torch.no_grad()
    def swap_out(self, module: L.LightningModule) -> None:
        assert self._raw is not None
        scatter(module)
        torch._foreach_copy_(self.shards(module), self._raw)
        self._raw = None

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.swap_in(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.swap_out(pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"averages": self.averages}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.averages = state_dict["averages"]


@contextmanager
def weights_for_sampling(trainer: L.Trainer, module: L.LightningModule) -> Iterator[str]:
    """Context in which the module has the weights to sample with; yields their name: `ema` if there is an average, else
    `raw`. The module is on the training device, from which Lightning removes it before `on_fit_end`. Every rank must
    enter; inside, the network does not communicate, and ranks may call it different numbers of times."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    ema = next((c for c in callbacks if isinstance(c, EMA) and c.averages and c._raw is None), None)
    before = module.device
    module.to(trainer.strategy.root_device)
    try:
        with nullcontext() if ema is None else ema.applied(module), gathered(module):
            yield "raw" if ema is None else "ema"
    finally:
        module.to(before)
