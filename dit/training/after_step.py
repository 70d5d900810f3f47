"""The base of callbacks that act after every optimizer step."""

from __future__ import annotations

from typing import Any

import lightning as L


class AfterStep(L.Callback):
    """Calls `after_step` after every optimizer step, and not after a batch whose gradient is only accumulated."""

    step = 0  # the last that is done

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step != self.step:
            self.step = trainer.global_step
            self.after_step(trainer, pl_module)

    def after_step(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        raise NotImplementedError
