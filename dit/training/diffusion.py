"""The LightningModule that trains a diffusion backbone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dit.diffusion.noise import generator
from dit.diffusion.objective import Objective
from dit.pipeline import Pipeline
from dit.training.module import TrainedModule
from dit.types import Batch

VALIDATION = -1  # stands where the step stands in training, so that validation meets the same noise every time


class DiffusionModule(TrainedModule):
    """Only the backbone is in the module tree; the frozen encoders stay in the pipeline.

    Noise, times and caption dropout follow from (seed, step, index of the sample), whatever process or batch draws
    them; stratified times follow from the place in the batch besides.
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
        super().__init__(optimizer, schedule, seed)
        if not 0 <= caption_dropout <= 1:
            raise ValueError(f"caption_dropout={caption_dropout} is a probability")
        self.pipeline, self.backbone = pipeline, pipeline.backbone
        self.objective, self.caption_dropout = objective, caption_dropout
        self.null = pipeline.no_text()
        if compile:
            self.backbone.compile()

    def chance(self, batch: Batch, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """eps (B, C, H, W) float32, u (B,) float64 in (0, 1) on the CPU, and which captions to drop (B,).

        The types are named, for in precision=bf16-true torch's default is bfloat16.
        """
        wide = torch.float32
        eps, uniform = torch.empty(batch.x0.shape, dtype=wide), torch.empty(len(batch.x0), 2, dtype=wide)
        for row, index in enumerate(batch.index.tolist()):
            draw = generator(self.seed, step, index)
            eps[row] = torch.randn(batch.x0.shape[1:], generator=draw, dtype=wide)
            uniform[row] = torch.rand(2, generator=draw, dtype=wide)
        u, drop = uniform.unbind(1)
        u = u.double().clamp(1e-5, 1 - 1e-5)
        if self.objective.stratified and step != VALIDATION:
            place = torch.arange(len(u)) * self.trainer.world_size + self.trainer.global_rank  # in the whole batch
            u = (place + u) / (len(u) * self.trainer.world_size)
        if self.device.type == "cuda":  # from pinned memory the copy need not be waited for
            eps = eps.pin_memory()
        return eps.to(self.device, non_blocking=True), u, (drop < self.caption_dropout).to(self.device)

    def loss(self, batch: Batch, step: int, dropout: bool) -> Tensor:
        """(B,) losses."""
        eps, u, dropped = self.chance(batch, step)
        condition = batch.condition.drop(dropped, self.null.to(self.device)) if dropout else batch.condition
        return self.objective(self.backbone, batch.x0, condition, eps, u)

    def training_step(self, batches: list[Batch], _: int) -> Tensor:
        return self.log_loss(self.loss(batches[0], self.global_step, dropout=True).mean())

    def validation_step(self, batch: Batch, _: int) -> None:
        loss = self.loss(batch, VALIDATION, dropout=False).mean()
        self.log("val/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(batch.x0))
