"""Throughput of training, and the progress bar that shows it."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.profilers import PassThroughProfiler, Profiler
from torch import nn
from torch.optim import Optimizer
from tqdm import tqdm

from dit.training.diffusion import DiffusionModule
from dit.training.flops import meta_copy, peak_of, training_flops
from dit.training.interruption import Interruption
from dit.training.optimizer import rates_of
from dit.types import Batch

FIRST, LAST = 3, 30  # the steps of a command between which the time of a step is measured for the forecast
SOON = 10.0  # seconds, after which the forecast is made from fewer steps
NEXT_BATCH = "train_dataloader_next"  # Lightning's name for waiting for a batch


class DataClock(Profiler):
    """Measures the seconds that training waits for batches."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = self.started = 0.0

    def start(self, action_name: str) -> None:
        if action_name.endswith(NEXT_BATCH):
            self.started = time.perf_counter()

    def stop(self, action_name: str) -> None:
        if action_name.endswith(NEXT_BATCH):
            self.seconds += time.perf_counter() - self.started


class Throughput(L.Callback):
    """Logs for the last `every` steps, without validation: images per second; the mean seconds that a step waited for
    its batch, unless trainer.profiler is set; for a diffusion backbone the network's FLOP/s of all devices together,
    and MFU, their share of the devices' peak, where it is known.

    Images are those of all ranks. FLOPs are those of one forward and backward pass of the network for each sample,
    counted once for each shape of x, with the length of the text in the first batch of this shape. peak_tflops: of one
    device; null: that of its maker's data sheet, known for some GPUs in bf16.

    `train_seconds` is the time from the first to the last step, with everything in between. Checkpoints store it, so
    that it includes the time before a run was resumed. After the first LAST steps of a command, or the first SOON
    seconds, the time that the rest will take is printed.
    """

    def __init__(self, every: int = 50, peak_tflops: float | None = None) -> None:
        self.every = every
        self.peak = None if peak_tflops is None else peak_tflops * 1e12
        self.seconds, self.images, self.data_seconds = 0.0, 0, 0.0
        self.clock = self.mark = self.waited = self.mark_waited = self.begin = 0.0
        self.step = self.mark_step = self.start = 0
        self.taken = self.mark_images = 0  # images of the batches since the last step; images at the mark
        self.reported = False
        self.rate, self.lr = 0.0, 0.0
        self.shown: dict[str, str] = {}  # for the progress bar
        self.waiting: DataClock | None = None
        self.network: nn.Module | None = None
        self.flops: dict[tuple[int, ...], int] = {}  # of a sample, by its shape
        self.operations = 0.0  # FLOPs since the mark, of this rank

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Copies the network's structure, before it is compiled, recomputed or sharded."""
        if isinstance(trainer.profiler, PassThroughProfiler):  # type: ignore[attr-defined]
            self.waiting = trainer.profiler = DataClock()  # type: ignore[attr-defined]
        if isinstance(pl_module, DiffusionModule):
            self.network = meta_copy(pl_module.backbone)

    def count(self, trainer: L.Trainer) -> None:
        """Adds the time and the images since the last count."""
        now, waited = time.perf_counter(), self.waiting.seconds if self.waiting else 0.0
        self.seconds += now - self.clock
        self.data_seconds += waited - self.waited
        self.images += self.taken
        self.taken = 0
        self.clock, self.step, self.waited = now, trainer.global_step, waited

    def restart(self) -> None:
        """Begins to measure the next `every` steps."""
        self.mark, self.mark_step, self.mark_waited, self.operations = self.clock, self.step, self.waited, 0.0
        self.mark_images = self.images

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.clock, self.step = time.perf_counter(), trainer.global_step
        self.waited = self.waiting.seconds if self.waiting else 0.0
        self.start = self.step
        self.peak = self.peak or peak_of(trainer.strategy.root_device, str(trainer.precision))
        self.restart()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *_: Any) -> None:
        first = batch[0]
        self.taken += len(first.index) * trainer.world_size
        if self.network is None or not isinstance(first, Batch):
            return
        shape = tuple(first.x0.shape[1:])
        if shape not in self.flops:
            self.flops[shape] = training_flops(self.network, first.x0, first.condition)
        self.operations += self.flops[shape] * len(first.x0)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        self.lr = rates_of(optimizer)["lr"]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step:  # a part of a step
            return
        self.count(trainer)
        if self.step - self.mark_step >= self.every:
            self.measure(trainer, pl_module)
        self.forecast(trainer)

    def measure(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Logs the rates of the last steps."""
        steps, seconds = self.step - self.mark_step, self.clock - self.mark
        self.rate = (self.images - self.mark_images) / seconds
        module.log("train/images_per_second", self.rate)
        self.shown = {"images/s": f"{self.rate:.0f}", "lr": f"{self.lr:.2g}"}
        if self.waiting is not None:
            waited = self.waited - self.mark_waited
            module.log("train/data_seconds_per_step", waited / steps)
            self.shown["data"] = f"{waited / seconds:.0%}"
        if self.operations:
            rate = self.operations / seconds
            module.log("train/model_tflops", rate * trainer.world_size / 1e12)
            self.shown["TFLOP/s"] = f"{rate * trainer.world_size / 1e12:.3g}"
            if self.peak is not None:
                module.log("train/mfu", rate / self.peak)
                self.shown["MFU"] = f"{rate / self.peak:.1%}"
        self.restart()

    def forecast(self, trainer: L.Trainer) -> None:
        """Prints, after the first steps, how long the rest will take at their pace."""
        done, left, spent = self.step - self.start, trainer.max_steps - self.step, self.clock - self.begin
        if done == FIRST:
            self.begin = self.clock
        elif not self.reported and done > FIRST and (done == LAST or spent > SOON):
            self.reported = True
            if trainer.is_global_zero and left >= done - FIRST:
                tqdm.write(time_left(left, spent / (done - FIRST), time_allowed(trainer)), file=sys.stderr)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.count(trainer)
        self.restart()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.count(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "images": self.images, "data_seconds": self.data_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.images = state_dict["seconds"], state_dict["images"]
        self.data_seconds = state_dict.get("data_seconds", 0.0)  # checkpoints of 0.1.0 have none

    def summary(self) -> dict[str, float]:
        """Returns train_seconds, images_per_second and data_seconds of the whole run."""
        rate = self.images / self.seconds if self.seconds else 0.0
        found = {"train_seconds": self.seconds, "images_per_second": rate}
        return found if self.waiting is None else found | {"data_seconds": self.data_seconds}


def time_allowed(trainer: L.Trainer) -> float | None:
    """Returns the seconds until trainer.max_time, or None if there is no limit."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((c.timer.time_remaining() for c in callbacks if isinstance(c, Interruption)), None)


def time_left(left: int, each: float, limit: float | None) -> str:
    """Returns in words how long `left` steps of `each` seconds take, or how many of them take `limit` seconds."""
    pace = f"{left:,} steps at {each:.2g} s, plus validation, previews and scores"
    if limit is None or left * each <= limit:
        return f"about {in_words(left * each)} left: {pace}"
    return f"about {in_words(limit)} left until trainer.max_time, enough for about {int(limit / each):,} of {pace}"


def in_words(seconds: float) -> str:
    """Returns a duration in its largest unit of which there are at least two: 100 s, 3 min, 47 h, 2 days."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


class Bar(TQDMProgressBar):
    """A progress bar that counts optimizer steps to the end of training and shows the rates of `Throughput`."""

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
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Throughput):
                shown |= callback.shown
        return shown
