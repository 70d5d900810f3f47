"""Exponential moving averages of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor


class EMA(L.Callback):
    """Averages the trainable parameters after every optimizer step, in float32, and validates with the average.

    The decay of step n is min(decay, (1 + n) / (10 + n)), so that the start is forgotten quickly.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema decay={decay} must lie in [0, 1)")
        self.decay = decay
        self.weights: dict[str, Tensor] = {}
        self.step = 0
        self._raw: list[Tensor] | None = None

    @property
    def state_key(self) -> str:
        return "EMA"

    @staticmethod
    def trained(module: L.LightningModule) -> dict[str, Tensor]:
        return {name: p for name, p in module.named_parameters() if p.requires_grad}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        now = self.trained(pl_module)
        loaded = self.weights or {name: p.detach().float().clone() for name, p in now.items()}
        self.weights = {name: loaded[name].to(p.device) for name, p in now.items()}
        self.step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step:  # a batch of accumulated gradients moves no weights
            return
        self.step = trainer.global_step
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        now = [p.detach().float() for p in self.trained(pl_module).values()]
        torch._foreach_lerp_(list(self.weights.values()), now, 1 - decay)

    @contextmanager
    def applied(self, module: L.LightningModule) -> Iterator[None]:
        """Inside, the module has the averaged weights; afterwards its own again, to the bit."""
        self.swap_in(module)
        try:
            yield
        finally:
            self.swap_out(module)

    @torch.no_grad()
    def swap_in(self, module: L.LightningModule) -> None:
        parameters = list(self.trained(module).values())
        self._raw = [p.detach().clone() for p in parameters]
        torch._foreach_copy_(parameters, list(self.weights.values()))

    @torch.no_grad()
    def swap_out(self, module: L.LightningModule) -> None:
        assert self._raw is not None
        torch._foreach_copy_(list(self.trained(module).values()), self._raw)
        self._raw = None

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.swap_in(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.swap_out(pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"decay": self.decay, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.weights = state_dict["weights"]


def weights_for_sampling(trainer: L.Trainer, module: L.LightningModule) -> Any:
    """A context in which the module holds the weights one samples with: the average where there is one."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EMA) and callback.weights and callback._raw is None:
            return callback.applied(module)
    return _as_they_are()


@contextmanager
def _as_they_are() -> Iterator[None]:
    yield
