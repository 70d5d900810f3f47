"""The LightningModule that trains a diffusion backbone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from dit.diffusion.noise import generator
from dit.diffusion.objective import Objective
from dit.pipeline import Pipeline
from dit.types import Batch

VALIDATION = -1  # stands where the step stands in training, so that validation meets the same noise every time


class DiffusionModule(L.LightningModule):
    """Only the backbone is in the module tree; the frozen encoders stay in the pipeline.

    Noise, times and caption dropout follow from (seed, step, index of the sample), whatever process or batch draws
    them.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        objective: Objective,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., Any],
        seed: int,
        caption_dropout: float = 0.1,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= caption_dropout <= 1:
            raise ValueError(f"caption_dropout={caption_dropout} is a probability")
        self.pipeline, self.backbone = pipeline, pipeline.backbone
        self.objective, self.optimizer, self.schedule = objective, optimizer, schedule
        self.seed, self.caption_dropout = seed, caption_dropout
        self.null = pipeline.text_encoder.null()
        if compile:
            self.backbone.compile()

    def chance(self, batch: Batch, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """eps (B, C, H, W), u (B,) in (0, 1) and which captions to drop (B,), on the batch's device."""
        eps, uniform = torch.empty(batch.x0.shape), torch.empty(len(batch.x0), 2)
        for row, index in enumerate(batch.index.tolist()):
            draw = generator(self.seed, step, index)
            eps[row] = torch.randn(batch.x0.shape[1:], generator=draw)
            uniform[row] = torch.rand(2, generator=draw)
        u, drop = uniform.to(self.device).unbind(1)
        return eps.to(self.device), u.clamp(1e-5, 1 - 1e-5), drop < self.caption_dropout

    def loss(self, batch: Batch, step: int, dropout: bool) -> Tensor:
        """(B,) losses."""
        eps, u, dropped = self.chance(batch, step)
        condition = batch.condition.drop(dropped, self.null.to(self.device)) if dropout else batch.condition
        return self.objective(self.backbone, batch.x0, condition, eps, u)

    def training_step(self, batches: list[Batch], _: int) -> Tensor:
        loss = self.loss(batches[0], self.global_step, dropout=True).mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        loss = self.loss(batch, VALIDATION, dropout=False).mean()
        self.log("val/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(batch.x0))

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.named_parameters())
        schedule = self.schedule(optimizer, steps=self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
