"""A DataLoader whose processes report a file that cannot be read in its own line."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset


class Answers(Dataset[Any]):
    """What `read` returns for each item of a sampler, or its ValueError as a value: a DataLoader would bury the message
    below the traceback of its process."""

    def __init__(self, read: Callable[[Any], Any]) -> None:
        self.read = read

    def __getitem__(self, item: Any) -> Any:
        try:
            return self.read(item)
        except ValueError as error:
            return ValueError(str(error))  # subclasses may need more arguments to be unpickled


def unchanged(batch: Any) -> Any:
    return batch


class Loader(DataLoader[Any]):
    """Yields what `read` returns for each item of the sampler, read by `workers` processes, or by this one if 0. Raises
    the ValueErrors of `read`."""

    def __init__(self, read: Callable[[Any], Any], sampler: Any, workers: int) -> None:
        super().__init__(
            Answers(read),
            sampler=sampler,
            batch_size=None,
            num_workers=workers,
            collate_fn=unchanged,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=end_with_parent,
        )

    def __iter__(self) -> Any:
        return raised(super().__iter__())  # here, because it draws from torch's global generator


def raised(batches: Iterator[Any]) -> Iterator[Any]:
    """Yields the batches; raises a ValueError that is one of them."""
    for batch in batches:
        if isinstance(batch, ValueError):
            raise batch
        yield batch


def end_with_parent(worker: int) -> None:
    """Makes this process, a worker of a loader, end at a SIGTERM of its parent only: SLURM sends one to all processes
    of a job, and the step that the parent completes before it ends may need more batches."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def is_dead_worker(error: BaseException) -> bool:
    """Whether an error says that a process of a DataLoader has ended, which may be raised at any moment."""
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)
