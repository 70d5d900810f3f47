"""Base class of all LightningModules of dit: optimizer, learning rate, seed, logging of the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dit.training.optimizer import rates_of
from dit.training.parallel import Sharded


@dataclass(frozen=True)
class SampleLosses:
    """The samples of a batch: index and epoch, (B,) int64; times, (B,) float64 on the CPU, and losses, (B,) on the
    device, or None if a loss is of the whole batch."""

    index: Tensor
    epoch: Tensor
    times: Tensor | None = None
    losses: Tensor | None = None


class TrainedModule(L.LightningModule):
    """A LightningModule whose optimizer and learning-rate schedule come from the config.

    optimizer: named parameters -> Optimizer. schedule: (optimizer, steps) -> LambdaLR, called once per optimizer step.
    headlines: the main metrics of its validation, and whether higher is better.
    """

    headlines: Mapping[str, bool]

    def __init__(self, optimizer: Callable[..., Optimizer], schedule: Callable[..., LambdaLR], seed: int) -> None:
        super().__init__()
        self.optimizer, self.schedule, self.seed = optimizer, schedule, seed
        self.settings: list[dict[str, Any]] = []  # of the parameter groups
        self.part_losses: list[Tensor] = []  # of the accumulated batches of one step
        self.step_loss = torch.zeros(())  # their mean
        self.samples: list[SampleLosses] = []  # of one step
        self.gradient_norm: Tensor | None = None  # before clipping, if a callback has computed it

    def configure_model(self) -> None:
        """Raises ValueError if the weights are to be divided among processes: only a diffusion backbone can be."""
        if isinstance(self.trainer.strategy, Sharded):
            raise ValueError(
                f"{type(self).__name__} cannot be trained with trainer=fsdp or hsdp, which divide diffusion backbones; "
                f"choose trainer=ddp"
            )

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.named_parameters())
        schedule = self.schedule(optimizer, steps=self.trainer.max_steps)
        self.settings = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Sets learning rates, betas and decays to the config's values, in place of those of a loaded checkpoint."""
        optimizer, schedule = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        assert isinstance(optimizer, Optimizer)
        assert isinstance(schedule, LambdaLR)
        for group, settings, factor in zip(optimizer.param_groups, self.settings, schedule.lr_lambdas, strict=True):
            group |= settings
            group["lr"] = settings["initial_lr"] * factor(schedule.last_epoch)
        schedule.base_lrs = [settings["initial_lr"] for settings in self.settings]

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips like Lightning, with the norm that a callback has computed if there is one."""
        norm, self.gradient_norm = self.gradient_norm, None
        if norm is None or not gradient_clip_val or gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            torch.nn.utils.clip_grads_with_norm_(self.parameters(), gradient_clip_val, norm)

    def log_mean(self, name: str, value: Tensor | float, rows: int, prog_bar: bool = False) -> None:
        """Logs a mean over the rows of a validation batch; Lightning averages it over all batches and ranks."""
        weight = float(rows)  # of whole numbers Lightning would round the mean over ranks down
        self.log(name, value, prog_bar, sync_dist=True, batch_size=weight)  # type: ignore[arg-type]

    def log_loss(self, loss: Tensor, part: int, samples: list[SampleLosses]) -> Tensor:
        """Logs train/loss, the mean over all accumulated batches of a step and over all ranks, and the learning rate of
        the step as train/lr, every trainer.log_every_n_steps steps and for the last step. Returns `loss`.
        part: Lightning's index of the batch. samples: those of the batch, for the stability guard."""
        if part % self.trainer.accumulate_grad_batches == 0:
            self.samples = []
        self.samples += samples
        self.part_losses.append(loss.detach())
        if (part + 1) % self.trainer.accumulate_grad_batches == 0:
            self.step_loss = torch.stack(self.part_losses).mean()
            step, every = self.global_step + 1, self.trainer.log_every_n_steps  # type: ignore[attr-defined]
            if (
                step % every == 0 or step == self.trainer.max_steps
            ):  # Lightning would log no other, at half a millisecond
                self.log("train/loss", self.step_loss, sync_dist=True)
                for name, rate in rates_of(self.optimizers(use_pl_optimizer=False)).items():
                    self.log(f"train/{name}", rate)
            self.part_losses.clear()
        return loss
