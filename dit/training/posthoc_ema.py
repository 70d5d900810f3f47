"""Tracks averages from which those of any width are reconstructed after training (`dit.checkpoints.posthoc`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from dit.checkpoints.posthoc import gamma_of
from dit.checkpoints.snapshots import write_snapshot
from dit.tensors import dtype_of
from dit.training.after_step import AfterStep
from dit.training.ema import EMA
from dit.training.parallel import placed_like, shard_of, whole


class PosthocEMA(AfterStep):
    """Averages the trainable parameters after every optimizer step by power functions, in float32, and writes the
    averages to RUN/snapshots every `every` steps and at the last step.

    At step t an average moves by 1 - (1 - 1/t)^(gamma + 1) to the weights (arXiv:2312.02696, equation 4), which
    forgets the initial weights at once. widths: the averages' standard deviations relative to the length of training;
    each is one more copy of the weights. dtype: of the files, float16, bfloat16 or float32. Raises ValueError for other
    values.
    """

    def __init__(self, every: int, widths: Sequence[float] = (0.05, 0.10), dtype: str = "float16") -> None:
        if every < 1:
            raise ValueError(f"callbacks.posthoc_ema.every={every} must be at least 1")
        if not widths or len({f"{width:g}" for width in widths}) < len(widths):
            raise ValueError(f"callbacks.posthoc_ema.widths={list(widths)} must be different numbers, at least one")
        names = [f"{width:g}" for width in widths]  # as in the names of the files
        self.every, self.gammas = every, {name: gamma_of(float(name)) for name in names}
        self.dtype = dtype_of("callbacks.posthoc_ema.dtype", dtype, ("float16", "bfloat16", "float32"))
        self.averages: dict[str, dict[str, Tensor]] = {}  # by width, then by the names of the parameters

    @property
    def state_key(self) -> str:
        return "PosthocEMA"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Moves the averages to the device. Raises ValueError if the checkpoint has no averages of these widths."""
        super().on_train_start(trainer, pl_module)
        now = EMA.trained(pl_module)
        if self.step == 0:
            self.averages = {width: dict(now) for width in self.gammas}  # copied below; the first step replaces them
        missing = [width for width in self.gammas if self.averages.get(width, {}).keys() != now.keys()]
        if missing:
            raise ValueError(
                f"callbacks.posthoc_ema.widths: the checkpoint of step {self.step} has no averages of width "
                f"{', '.join(missing)} for these weights: an average starts at step 0; start a new run with init=RUN"
            )
        self.averages = {
            width: {
                name: placed_like(p, self.averages[width][name].detach()).to(p.device, torch.float32, copy=True)
                for name, p in now.items()
            }
            for width in self.gammas
        }

    @torch.no_grad()
    def after_step(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        now = [shard.float() for shard in EMA.shards(module)]
        for width, gamma in self.gammas.items():
            moved = 1 - (1 - 1 / self.step) ** (gamma + 1)
            torch._foreach_lerp_([shard_of(average) for average in self.averages[width].values()], now, moved)
        if self.step % self.every == 0 or self.step == trainer.max_steps:
            self.write(trainer, all(bool(p.isfinite().all()) for p in now))

    def write(self, trainer: L.Trainer, finite: bool) -> None:
        """Writes the averages on rank 0, if the weights are finite on all: otherwise no checkpoint is written either,
        and `StabilityGuard` reports it. Every rank must call it, because sharded averages are gathered."""
        if not trainer.strategy.reduce_boolean_decision(finite, all=True):
            return
        for width, average in self.averages.items():
            complete = {name: whole(tensor).to("cpu", self.dtype) for name, tensor in average.items()}
            if trainer.is_global_zero:
                write_snapshot(Path(trainer.default_root_dir), self.step, float(width), complete, self.dtype)

    def state_dict(self) -> dict[str, Any]:
        return {"averages": self.averages}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.averages = state_dict["averages"]
