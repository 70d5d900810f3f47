"""Ending a training run before its last step, so that it can be gone on with exactly: signals and trainer.max_time."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Timer

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(BaseException):
    """A run was ended from outside. It is no Exception, for nothing but the command itself may catch it.

    status: of the process, 128 + the number of the signal, or 0 where the time was up.
    """

    def __init__(self, cause: str, status: int) -> None:
        super().__init__(cause)
        self.cause, self.status = cause, status


class Interruption(L.Callback):
    """Ends training between two optimizer steps, after a checkpoint was written, when a signal has arrived or
    `max_time` is over, which counts from the first step of this process. All processes end after the same step, and
    after the validation, previews and scores that are due at it.

    Before and after the steps, and for a second signal, nothing is waited for: `Interrupted` is raised at once. It must
    stand before `Checkpoints`, which writes the checkpoint where `due` is true.
    """

    def __init__(self, max_time: str | dict[str, int] | None = None) -> None:
        self.timer = Timer(max_time)
        self.received: Interrupted | None = None
        self.stepping = self.due = False
        self.step = 0
        self.process = os.getpid()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, SIGTERM and SIGINT come here."""
        if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
            yield
            return
        before = {number: signal.signal(number, self.receive) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)

    def receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # a worker that was forked: it ends with its parent, or when it is ended
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        interrupted = Interrupted(signal.Signals(number).name, 128 + number)
        if not self.stepping or self.received is not None:
            raise interrupted
        self.received = interrupted

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.receive)  # Lightning's own would stop in the middle of a step
        self.timer.on_train_start(trainer, pl_module)
        self.stepping, self.step = True, trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step in (self.step, trainer.max_steps):  # a part of a step, or the end
            return
        self.step = trainer.global_step
        left = self.timer.time_remaining()
        if left is not None and left <= 0 and trainer.is_global_zero and self.received is None:
            self.received = Interrupted("trainer.max_time", 0)
        # Several processes have to agree, which waits for their GPUs: at logging steps alone.
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.world_size == 1 or self.step % every == 0:
            self.due = trainer.strategy.reduce_boolean_decision(self.received is not None, all=False)

    def end(self) -> None:
        """Ends the training where that is due: its checkpoint is written, and its losses are logged."""
        if self.due:
            raise self.received or Interrupted("a signal to another process", 128 + signal.SIGTERM)

    def on_train_batch_start(self, *_: Any) -> None:
        self.end()

    def on_train_end(self, *_: Any) -> None:
        self.stepping = False

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A signal that arrived in the last step ends the run before it is scored."""
        self.due = trainer.strategy.reduce_boolean_decision(self.received is not None, all=False)
        self.end()

    def on_exception(self, *_: Any) -> None:
        self.stepping = False
