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
from dit.types import Batch, to_device

VALIDATION = -1  # stands where the epoch stands in training, so that validation has the same noise every time


class DiffusionModule(TrainedModule):
    """Only the backbone is in the module tree; the frozen encoders stay in the pipeline.

    Noise, times and caption dropout follow from (seed, epoch, index of the sample), whatever step, process or batch
    draws them; stratified times follow from the place in the batch besides.
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
        self.null = pipeline.null_condition()
        if compile:
            self.backbone.compile()

    def on_fit_start(self) -> None:
        self.null = self.null.to(self.device)  # once: a copy at every step would be waited for

    def noise(self, batch: Batch, epochs: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """eps (B, C, H, W) float32 on the module's device; on the CPU u (B,) float64 in (0, 1), for the times, and
        (B,) float32 in [0, 1), for the dropout of captions.

        The types are named, for in precision=bf16-true torch's default is bfloat16.
        """
        wide = torch.float32
        eps, uniform = torch.empty(batch.x0.shape, dtype=wide), torch.empty(len(batch.x0), 2, dtype=wide)
        for row, (epoch, index) in enumerate(zip(epochs, batch.index.tolist(), strict=True)):
            draw = generator(self.seed, epoch, index)
            eps[row] = torch.randn(batch.x0.shape[1:], generator=draw, dtype=wide)
            uniform[row] = torch.rand(2, generator=draw, dtype=wide)
        u, drop = uniform.unbind(1)
        return to_device(eps, self.device), u.double().clamp(1e-5, 1 - 1e-5), drop

    def stratify(self, u: Tensor, part: int) -> Tensor:
        """Moves each uniform number into its row's own share of (0, 1), of the whole batch of a step: `part` counts the
        accumulated batches, of which every process has every world-th row."""
        world, parts = self.trainer.world_size, self.trainer.accumulate_grad_batches
        place = (part % parts * len(u) + torch.arange(len(u))) * world + self.trainer.global_rank
        return (place + u) / (len(u) * world * parts)

    def loss(self, batch: Batch, part: int) -> Tensor:
        """(B,) training losses."""
        eps, u, drop = self.noise(batch, batch.epoch.tolist())
        if self.objective.stratified:
            u = self.stratify(u, part)
        dropped = to_device(drop < self.caption_dropout, self.device)
        condition = batch.condition.drop(dropped, self.null)
        return self.objective(self.backbone, batch.x0, condition, eps, u)

    def training_step(self, batches: list[Batch], part: int) -> Tensor:
        return self.log_loss(self.loss(batches[0], part).mean(), part)

    def validation_step(self, batch: Batch, _: int) -> None:
        eps, u, _drop = self.noise(batch, [VALIDATION] * len(batch.x0))
        loss = self.objective(self.backbone, batch.x0, batch.condition, eps, u).mean()
        self.log("val/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(batch.x0))
