"""Throughput of training, and the progress bar that shows it."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar


class Throughput(L.Callback):
    """Logs the images per second of the last `every` steps, without validation.

    `train_seconds` is the time from the first to the last step, with everything in between. Checkpoints store it, so
    that it includes the time before a run was resumed.
    """

    def __init__(self, every: int = 50) -> None:
        self.every = every
        self.seconds, self.images = 0.0, 0
        self.clock = self.mark = 0.0
        self.step = self.mark_step = 0
        self.rate = 0.0

    def count(self, trainer: L.Trainer) -> None:
        """Adds the time and the images since the last count."""
        now = time.perf_counter()
        self.seconds += now - self.clock
        self.images += (trainer.global_step - self.step) * trainer.datamodule.batch_size  # type: ignore[attr-defined]
        self.clock, self.step = now, trainer.global_step

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.clock = self.mark = time.perf_counter()
        self.step = self.mark_step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.count(trainer)
        if self.step - self.mark_step >= self.every:
            images = (self.step - self.mark_step) * trainer.datamodule.batch_size  # type: ignore[attr-defined]
            self.rate = images / (self.clock - self.mark)
            self.mark, self.mark_step = self.clock, self.step
            pl_module.log("train/images_per_second", self.rate)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.mark, self.mark_step = time.perf_counter(), trainer.global_step

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.count(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "images": self.images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.images = state_dict["seconds"], state_dict["images"]

    def summary(self) -> dict[str, float]:
        """Returns train_seconds and images_per_second of the whole run."""
        rate = self.images / self.seconds if self.seconds else 0.0
        return {"train_seconds": self.seconds, "images_per_second": rate}


class Bar(TQDMProgressBar):
    """A progress bar that counts optimizer steps to the end of training and shows images per second."""

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
        if "train/loss" in trainer.callback_metrics:  # read only here, because it waits for the GPU
            shown["train/loss"] = float(trainer.callback_metrics["train/loss"])
        rate = next((c.rate for c in trainer.callbacks if isinstance(c, Throughput)), 0.0)  # type: ignore[attr-defined]
        if rate:
            shown["images/s"] = f"{rate:.0f}"
        return shown
