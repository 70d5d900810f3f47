"""Stops training or warns if the loss or the weights are not finite."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from dit.checkpoints.native import checkpoints_of

REMEDY = (
    "try a lower optimizer.lr, trainer.gradient_clip_val=1 or trainer.precision=32-true "
    "(callbacks.finite_loss.policy=warn continues training)"
)


class FiniteLoss(L.Callback):
    """Checks that losses and weights are finite. With policy=stop training ends with a ValueError if they are not, with
    policy=warn a warning is printed once. Raises ValueError for another policy.

    The number of the first step with such a loss stays on the device. It is read at logging steps and before a
    checkpoint is written, so that no other step waits for a GPU.
    """

    def __init__(self, policy: str = "stop") -> None:
        if policy not in ("stop", "warn"):
            raise ValueError(f"callbacks.finite_loss.policy={policy!r} is neither stop nor warn")
        self.policy = policy
        self.first: Tensor | None = None  # step, or -1 if all losses were finite
        self.step = 0
        self.warned = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Tensor | Mapping[str, Any] | None, *_: Any
    ) -> None:
        assert isinstance(outputs, Mapping)  # Lightning passes the loss of a step in it
        loss = outputs["loss"].detach()
        if self.first is None:
            self.first = torch.full((), -1, device=loss.device)
        broken = loss.isfinite().logical_not() & (self.first < 0)
        self.first = torch.where(broken, self.step + 1, self.first)
        if trainer.global_step == self.step:  # a part of a step
            return
        self.step = trainer.global_step
        if self.step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.losses_are_finite(trainer)

    def losses_are_finite(self, trainer: L.Trainer) -> bool:
        """Returns True if all losses since the last call are finite. Raises ValueError if not and policy=stop."""
        first = -1 if self.first is None else int(self.first)
        self.first = None
        if not trainer.strategy.reduce_boolean_decision(first >= 0, all=False):
            return True
        self.report(trainer, "loss", first if first >= 0 else trainer.global_step)
        return False

    def passes(self, trainer: L.Trainer, module: L.LightningModule) -> bool:
        """Returns True if a checkpoint may be written: losses and weights are finite. Raises like
        `losses_are_finite`."""
        if not self.losses_are_finite(trainer):
            return False
        finite = torch.stack([p.detach().isfinite().all() for p in module.parameters()])
        if bool(finite.all()):
            return True
        self.report(trainer, "weights", trainer.global_step)
        return False

    def report(self, trainer: L.Trainer, what: str, step: int) -> None:
        """Raises ValueError if policy=stop, else prints the first such warning."""
        kept = checkpoints_of(Path(trainer.default_root_dir))
        last = f"the last finite checkpoint is {kept[0]}" if kept else "no checkpoint was written before"
        verb = "is" if what == "loss" else "are"
        message = f"the {what} {verb} not finite at step {step}: {REMEDY}; {last}"
        if self.policy == "stop":
            raise ValueError(message)
        if not self.warned and trainer.is_global_zero:
            print(f"warning: {message}", file=sys.stderr)
        self.warned = True
