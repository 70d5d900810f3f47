"""What every training of dit has in common: an optimizer, a learning rate, and the seed of all its chance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
from torch import Tensor
from torch.optim import Optimizer


class TrainedModule(L.LightningModule):
    """A LightningModule that is told by config how to optimize.

    optimizer: named parameters -> Optimizer. schedule: (optimizer, steps) -> learning-rate scheduler of one step each.
    """

    def __init__(self, optimizer: Callable[..., Optimizer], schedule: Callable[..., Any], seed: int) -> None:
        super().__init__()
        self.optimizer, self.schedule, self.seed = optimizer, schedule, seed

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.named_parameters())
        schedule = self.schedule(optimizer, steps=self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def log_loss(self, loss: Tensor) -> Tensor:
        """Logs train/loss, the mean over all processes, and gives this process's own back."""
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        return loss
