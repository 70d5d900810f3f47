"""The LightningModule that trains a diffusion backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dit.checkpoints.native import BASE, trained_of
from dit.data.draws import TrainingDraws
from dit.diffusion.objective import Objective, TrainingObjective
from dit.pipeline import Pipeline
from dit.training.module import SampleLosses, TrainedModule
from dit.training.parallel import parallelize
from dit.types import Batch, Draw, Network


class DiffusionModule(TrainedModule):
    """Trains the backbone of a pipeline. Only the backbone is a submodule; the frozen encoders stay in the pipeline.

    compile: torch.compile of the backbone, or of each of its blocks. activation_checkpointing: keep only the inputs of
    blocks for the backward pass and compute the rest again. teacher: a second network for objectives that need one. It
    is frozen and not saved. base: path and fingerprint of the weights under an adapter: the module then saves and loads
    only the trained weights.

    `draws` makes the random numbers of a batch that has none; the data module uses it in the loader's workers.
    `learned_captions` replaces conditions that have a learned token. Stratified times also depend on the row in the
    batch.
    """

    headlines = MappingProxyType({"val/loss": False})
    teacher: Network | None
    learned_captions: Callable[[Batch], Batch] | None = None

    def __init__(
        self,
        pipeline: Pipeline,
        objective: TrainingObjective,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., Any],
        seed: int,
        caption_dropout: float = 0.1,
        compile: bool | Literal["blocks"] = False,
        activation_checkpointing: bool = False,
        teacher: Network | None = None,
        base: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(optimizer, schedule, seed)
        if not 0 <= caption_dropout <= 1:
            raise ValueError(f"caption_dropout={caption_dropout} is a probability and must lie in [0, 1]")
        self.pipeline, self.backbone = pipeline, pipeline.backbone
        self.objective, self.base = objective, base
        null = pipeline.null_condition()
        self.draws = TrainingDraws(pipeline.path, seed, null, caption_dropout)
        object.__setattr__(self, "teacher", teacher)  # not a submodule: neither trained nor saved
        self.compile_parts, self.activation_checkpointing = compile, activation_checkpointing

    def configure_model(self) -> None:
        """Prepares the backbone for the trainer's strategy. Called once the processes are connected."""
        parallelize(self.pipeline, self.trainer.strategy, self.activation_checkpointing, self.compile_parts)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        state = super().state_dict(*args, **kwargs)
        return state if self.base is None else {name: state[name] for name in trained_of(self)}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads like torch. Under an adapter, `state_dict` has only the trained weights."""
        return super().load_state_dict(state_dict, strict and self.base is None, assign)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.base is not None:
            checkpoint[BASE] = dict(self.base)

    def on_fit_start(self) -> None:
        self.draws = self.draws.to(self.device)  # once: a copy at every step would block
        if isinstance(self.teacher, nn.Module):
            self.teacher.to(self.device)

    def draw(self, batch: Batch, part: int | None = None) -> Draw:
        """Returns the draw of a batch that has its random numbers. part: the index of the accumulated batch, needed for
        stratified times; None in validation."""
        assert batch.noise is not None
        assert batch.uniform is not None
        u, u2, u3 = times_of(batch.uniform)
        return Draw(
            x0=batch.x0,
            condition=batch.condition,
            noise=batch.noise,
            u=u,
            u2=u2,
            u3=u3,
            null=self.draws.null,
            stratified=None if part is None else self.stratify(u, part),
            step=self.global_step,
            epoch=batch.epoch,
            teacher=self.teacher,
            features=batch.features,
        )

    def stratify(self, u: Tensor, part: int) -> Tensor:
        """Maps each uniform number (B,) into the stratum of its row: (0, 1) is divided among all rows of a step.

        part: the index of the accumulated batch; each rank has every world-size-th row.
        """
        world, parts = self.trainer.world_size, self.trainer.accumulate_grad_batches
        place = (part % parts * len(u) + torch.arange(len(u))) * world + self.trainer.global_rank
        return (place + u) / (len(u) * world * parts)

    def loss(self, batch: Batch, part: int) -> SampleLosses:
        """Returns the training losses (B,) with their samples and times."""
        drawn = self.draws(batch) if batch.noise is None else batch
        if self.learned_captions is not None:
            drawn = self.learned_captions(drawn)
        draw = self.draw(drawn, part)
        losses = self.objective(self.backbone, draw)
        times = self.objective.times(draw) if isinstance(self.objective, Objective) else None
        return SampleLosses(batch.index, batch.epoch, times, losses)

    def training_step(self, batches: list[Batch], part: int) -> Tensor:
        samples = self.loss(batches[0], part)
        assert samples.losses is not None
        return self.log_loss(samples.losses.mean(), part, [replace(samples, losses=samples.losses.detach())])

    def validation_step(self, batch: Batch, _: int) -> None:
        drawn = self.draws.validation(batch) if batch.noise is None else batch
        draw = self.draw(drawn)
        loss = self.objective(self.backbone, draw).mean()
        self.log_mean("val/loss", loss, len(batch.x0), prog_bar=True)
        further = self.objective.validation(self.backbone, draw) if isinstance(self.objective, Objective) else {}
        for name, values in further.items():
            self.log_mean(f"val/{name}", values.mean(), len(batch.x0))


def times_of(uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns u, u2 and u3 of a draw, (B,) float64 each, from `Batch.uniform`."""
    u, _, u2, u3 = uniform.double().clamp(1e-5, 1 - 1e-5).unbind(1)
    return u, u2, u3
