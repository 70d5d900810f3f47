"""The LightningModule that trains a diffusion backbone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dit.diffusion.noise import generator
from dit.diffusion.objective import TrainingObjective
from dit.pipeline import Pipeline
from dit.training.module import TrainedModule
from dit.types import Batch, Draw, Network, to_device

VALIDATION = -1  # used as the epoch in validation, so that its noise is the same every time


class DiffusionModule(TrainedModule):
    """Trains the backbone of a pipeline. Only the backbone is a submodule; the frozen encoders stay in the pipeline.

    teacher: a second network for objectives that need one. It is frozen and not saved.

    Noise, times and caption dropout are keyed by (seed, epoch, index of the sample) and do not depend on step, process
    or batch. Stratified times also depend on the row in the batch.
    """

    teacher: Network | None

    def __init__(
        self,
        pipeline: Pipeline,
        objective: TrainingObjective,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., Any],
        seed: int,
        caption_dropout: float = 0.1,
        compile: bool = False,
        teacher: Network | None = None,
    ) -> None:
        super().__init__(optimizer, schedule, seed)
        if not 0 <= caption_dropout <= 1:
            raise ValueError(f"caption_dropout={caption_dropout} is a probability and must lie in [0, 1]")
        self.pipeline, self.backbone = pipeline, pipeline.backbone
        self.objective, self.caption_dropout = objective, caption_dropout
        self.null = pipeline.null_condition()
        object.__setattr__(self, "teacher", teacher)  # not a submodule: neither trained nor saved
        if compile:
            self.backbone.compile()

    def on_fit_start(self) -> None:
        self.null = self.null.to(self.device)  # once: a copy at every step would block
        if isinstance(self.teacher, nn.Module):
            self.teacher.to(self.device)

    def draw(self, batch: Batch, epochs: list[int]) -> tuple[Draw, Tensor]:
        """Returns a draw with the conditions of the batch, and (B,) float32 uniform numbers on the CPU for caption
        dropout.

        The dtypes of random numbers are explicit, because with precision=bf16-true torch's default is bfloat16.
        """
        noise, uniform = [], torch.empty(len(batch.x0), 3, dtype=torch.float32)
        for row, (epoch, index) in enumerate(zip(epochs, batch.index.tolist(), strict=True)):
            keyed = generator(self.seed, epoch, index)
            noise.append(self.pipeline.path.training_noise(batch.x0.shape[1:], keyed))
            uniform[row, :2] = torch.rand(2, generator=keyed, dtype=torch.float32)
            uniform[row, 2] = torch.rand((), generator=keyed, dtype=torch.float32)
        u, drop, u2 = uniform.unbind(1)
        draw = Draw(
            x0=batch.x0,
            condition=batch.condition,
            noise=to_device(torch.stack(noise), self.device),
            u=u.double().clamp(1e-5, 1 - 1e-5),
            u2=u2.double().clamp(1e-5, 1 - 1e-5),
            null=self.null,
            step=self.global_step,
            epoch=batch.epoch,
            teacher=self.teacher,
            features=batch.features,
        )
        return draw, drop

    def stratify(self, u: Tensor, part: int) -> Tensor:
        """Maps each uniform number (B,) into the stratum of its row: (0, 1) is divided among all rows of a step.

        part: the index of the accumulated batch; each rank has every world-size-th row.
        """
        world, parts = self.trainer.world_size, self.trainer.accumulate_grad_batches
        place = (part % parts * len(u) + torch.arange(len(u))) * world + self.trainer.global_rank
        return (place + u) / (len(u) * world * parts)

    def loss(self, batch: Batch, part: int) -> Tensor:
        """Returns the training losses (B,)."""
        draw, drop = self.draw(batch, batch.epoch.tolist())
        dropped = to_device(drop < self.caption_dropout, self.device)
        condition = batch.condition.drop(dropped, self.null)
        return self.objective(self.backbone, replace(draw, condition=condition, stratified=self.stratify(draw.u, part)))

    def training_step(self, batches: list[Batch], part: int) -> Tensor:
        return self.log_loss(self.loss(batches[0], part).mean(), part)

    def validation_step(self, batch: Batch, _: int) -> None:
        draw, _drop = self.draw(batch, [VALIDATION] * len(batch.x0))
        loss = self.objective(self.backbone, draw).mean()
        self.log("val/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(batch.x0))
