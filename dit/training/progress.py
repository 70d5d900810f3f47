"""How fast training goes, told while it goes."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar


class Throughput(L.Callback):
    """Images per second of the last `every` steps, validation left out; `train_seconds` runs from the first step to the
    last, with all that lies between."""

    def __init__(self, every: int = 50) -> None:
        self.every = every
        self.started = self.finished = self.mark = time.perf_counter()
        self.first_step = self.mark_step = self.last_step = 0
        self.rate = 0.0
        self.batch_size = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.batch_size = trainer.datamodule.batch_size  # type: ignore[attr-defined]
        self.started = self.mark = time.perf_counter()
        self.first_step = self.mark_step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step - self.mark_step >= self.every:
            now = time.perf_counter()
            self.rate = (trainer.global_step - self.mark_step) * self.batch_size / (now - self.mark)
            self.mark, self.mark_step = now, trainer.global_step
            pl_module.log("train/images_per_second", self.rate)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.mark, self.mark_step = time.perf_counter(), trainer.global_step

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.finished, self.last_step = time.perf_counter(), trainer.global_step

    def summary(self) -> dict[str, float]:
        """train_seconds and images_per_second of this process's part of the run (a resumed run counts from there)."""
        seconds = self.finished - self.started
        images = (self.last_step - self.first_step) * self.batch_size
        return {"train_seconds": seconds, "images_per_second": images / seconds if seconds > 0 else 0.0}


class Bar(TQDMProgressBar):
    """The progress bar counts optimizer steps to the end of training, and shows images per second."""

    def __init__(self, refresh_rate: int = 20) -> None:
        super().__init__(refresh_rate=refresh_rate)

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.reset(total=trainer.max_steps)
        self.train_progress_bar.initial = trainer.global_step
        self.train_progress_bar.set_description("training")

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        rate = next((c.rate for c in trainer.callbacks if isinstance(c, Throughput)), 0.0)  # type: ignore[attr-defined]
        if rate:
            shown["images/s"] = f"{rate:.0f}"
        return shown
