"""Loads the next batch while the current one is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch


class Prefetched(Iterable[Any]):
    """The batches of a loader, each loaded in a thread while the batch before is used. An error of a batch is raised
    when that batch is due."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return _ahead(iter(self.loader))  # here, because a DataLoader then draws from torch's global generator


def _ahead(batches: Iterator[Any]) -> Iterator[Any]:
    thread, end = ThreadPoolExecutor(1, "loader", *_this_device()), object()
    used: deque[Any] = deque()

    def load(freed: list[Any]) -> Any:
        freed.clear()  # here, because it takes 14 ms to free the memory of a batch of long texts
        return next(batches, end)

    coming = thread.submit(load, [])
    while (batch := coming.result()) is not end:
        used.append(batch)
        # the trainer holds the batch before until it has this one
        coming = thread.submit(load, [used.popleft()] if len(used) > 2 else [])
        yield batch


def _this_device() -> tuple[Any, ...]:
    """Returns what makes a thread pin its batches for this rank's GPU instead of the first one."""
    return (torch.cuda.set_device, (torch.cuda.current_device(),)) if torch.cuda.is_available() else ()
