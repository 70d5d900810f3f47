"""Ends a training run early, on a signal or after trainer.max_time, so that it can be resumed exactly."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Timer

from dit.distributed import in_submitit_job
from dit.training.after_step import AfterStep
from dit.training.checkpoints import Checkpoints


def requeue_signal() -> signal.Signals | None:
    """Returns the signal by which SLURM asks a job of submitit to be requeued; None in other processes."""
    name = os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")
    return signal.Signals[f"SIG{name}"] if in_submitit_job() else None


class Interrupted(BaseException):
    """Raised when a run is ended by a signal or by max_time. Not an Exception, so that only the command catches it.

    status: exit status of the process, 128 + the number of the signal, or 0 for max_time.
    """

    def __init__(self, cause: str, status: int) -> None:
        super().__init__(cause)
        self.cause, self.status = cause, status


class Interruption(AfterStep):
    """Ends training between two optimizer steps, after writing a checkpoint, if a signal has arrived or `max_time` is
    over. `max_time` counts from the first step of this process. All ranks end after the same step, and after the
    validation, previews and scores of that step.

    Before the first and after the last step, and at a second signal, `Interrupted` is raised at once.
    """

    def __init__(self, max_time: str | dict[str, int] | None = None) -> None:
        self.timer = Timer(max_time)
        self.received: Interrupted | None = None
        self.stepping = self.due = False
        self.process = os.getpid()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Context in which this callback handles SIGTERM, SIGINT and, in a job of submitit, its requeue signal."""
        if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
            yield
            return
        numbers = {signal.SIGTERM, signal.SIGINT} | ({asked} if (asked := requeue_signal()) else set())
        before = {number: signal.signal(number, self.receive) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)

    def receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # a forked worker: it ends with its parent, or at SIGTERM
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
        super().on_train_start(trainer, pl_module)
        self.stepping = True

    def after_step(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.step == trainer.max_steps:
            return
        left = self.timer.time_remaining()
        if left is not None and left <= 0 and trainer.is_global_zero and self.received is None:
            self.received = Interrupted("trainer.max_time", 0)
        # Several ranks have to agree, which waits for their GPUs: only at logging steps.
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.world_size == 1 or self.step % every == 0:
            self.due = trainer.strategy.reduce_boolean_decision(self.received is not None, all=False)

    def end(self) -> None:
        """Raises `Interrupted` if training is to end."""
        if self.due:
            raise self.received or Interrupted("a signal to another process", 128 + signal.SIGTERM)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Saves the step before and ends: its losses are logged and its validation has ended."""
        if self.due:
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, Checkpoints):
                    callback.save(trainer)
        self.end()

    def on_train_end(self, *_: Any) -> None:
        self.stepping = False

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ends the run before its closing score if a signal arrived in the last step."""
        self.due = trainer.strategy.reduce_boolean_decision(self.received is not None, all=False)
        self.end()

    def on_exception(self, *_: Any) -> None:
        self.stepping = False


def requeue(resume: str | None, interrupted: Interrupted) -> None:
    """Puts a job of submitit that a signal has ended into the queue again, once: rank 0 hands the signal to submitit's
    own handler, which exits. Does nothing in other processes, after SIGINT, and without resume=auto, which the repeated
    job needs to go on."""
    number = requeue_signal()
    if number is None or interrupted.status == 128 + signal.SIGINT:
        return
    if resume != "auto":
        print("not requeued: give resume=auto, so that the job goes on where it ended", file=sys.stderr, flush=True)
        return
    signal.raise_signal(number)
