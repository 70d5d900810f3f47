"""The random numbers of training losses, drawn where a batch is loaded, so that a step does not wait for them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dit.data.order import Visit
from dit.diffusion.noise import generator
from dit.diffusion.process import Process
from dit.types import Batch, Condition, to_device

VALIDATION = -1  # used as the epoch in validation, so that its noise is the same every time


@dataclass(frozen=True)
class TrainingDraws:
    """Adds the random numbers of its losses to a batch, and applies caption dropout.

    They are keyed by (seed, epoch, index of the sample), and do not depend on step, process, batch or device. null: the
    null condition, one row, on the device of the batches.
    """

    process: Process
    seed: int
    null: Condition
    caption_dropout: float

    def __call__(self, batch: Batch) -> Batch:
        """Returns the batch with `noise` and `uniform`, and with the null condition in the rows that are dropped."""
        drawn = self._drawn(batch, batch.epoch.tolist())
        assert drawn.uniform is not None
        dropped = to_device(drawn.uniform[:, 1] < self.caption_dropout, batch.x0.device)
        drawn.condition = batch.condition.drop(dropped, self.null)
        return drawn

    def validation(self, batch: Batch) -> Batch:
        """Returns the batch with `noise` and `uniform`, which are the same in every validation."""
        return self._drawn(batch, [VALIDATION] * len(batch.x0))

    def further(self, batch: Batch, key: int, validation: bool = False) -> tuple[Tensor, Tensor]:
        """Returns `noise` and `uniform` of a further loss of the same batch, independent of those of other keys > 0."""
        drawn = self._drawn(batch, [VALIDATION] * len(batch.x0) if validation else batch.epoch.tolist(), key)
        assert drawn.noise is not None
        assert drawn.uniform is not None
        return drawn.noise, drawn.uniform

    def _drawn(self, batch: Batch, epochs: Sequence[int], *keys: int) -> Batch:
        """The dtypes are explicit, because with precision=bf16-true torch's default is bfloat16."""
        noise, uniform = [], torch.empty(len(epochs), 4, dtype=torch.float32)
        for row, (epoch, index) in enumerate(zip(epochs, batch.index.tolist(), strict=True)):
            keyed = generator(self.seed, epoch, index, *keys)
            noise.append(self.process.training_noise(batch.x0.shape[1:], keyed))
            uniform[row] = torch.rand(4, generator=keyed, dtype=torch.float32)
        drawn = copy.copy(batch)
        drawn.noise, drawn.uniform = to_device(torch.stack(noise), batch.x0.device), uniform
        return drawn

    def to(self, device: torch.device | str) -> TrainingDraws:
        return replace(self, null=self.null.to(device))


class DrawnBatches(Dataset[Batch]):
    """A data set whose batches get their random numbers as they are read."""

    def __init__(self, batches: Dataset[Batch], draw: Callable[[Batch], Batch]) -> None:
        self.batches, self.draw = batches, draw

    def __getitem__(self, visits: list[Visit]) -> Batch:
        return self.draw(self.batches[visits])
