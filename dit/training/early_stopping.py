"""Ends training when the validation loss no longer falls."""

from __future__ import annotations

import sys

import lightning as L
from lightning.pytorch import callbacks


class EarlyStopping(callbacks.EarlyStopping):
    """Ends training after `patience` validations in a row whose val/loss is not below the lowest one so far. The last
    step is saved and scored like that of any run; a resumed run continues to count.

    Raises ValueError if there is no validation."""

    def __init__(self, patience: int) -> None:
        super().__init__("val/loss", patience=patience, check_finite=False)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.limit_val_batches:
            raise ValueError(
                "callbacks.early_stopping.patience needs the validation loss, and trainer.limit_val_batches=0 turns "
                "validation off; set one of them to null"
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        before = trainer.should_stop
        super().on_validation_end(trainer, pl_module)
        if trainer.should_stop and not before and trainer.is_global_zero:
            print(
                f"training ends at step {trainer.global_step}: val/loss has not fallen below {self.best_score:.4g} in "
                f"{self.patience} validations",
                file=sys.stderr,
            )
