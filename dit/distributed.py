"""Several processes as one: rank and world size, barrier, reductions, and the samples of each rank. A thin layer over
`torch.distributed`, which also works in a single process without a process group."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


def is_initialized() -> bool:
    """Whether this process is part of a process group."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def launched_externally() -> bool:
    """True in one of several processes that torchrun or srun has started."""
    return any(int(os.environ.get(name, "1")) > 1 for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"))


def init_process_group() -> None:
    """Joins the processes that torchrun or srun has started, each on its own GPU where there is one. Does nothing in a
    single process, or when the process group exists."""
    if launched_externally() and not is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def destroy_process_group() -> None:
    """Leaves the process group where there is one."""
    if is_initialized():
        torch.distributed.destroy_process_group()


def rank_and_world_size() -> tuple[int, int]:
    """The rank of this process and the number of processes; (0, 1) without a process group."""
    return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if is_initialized() else (0, 1)


def barrier() -> None:
    """Returns when every process has called it."""
    if rank_and_world_size()[1] > 1:
        torch.distributed.barrier()


def all_reduce_sum(*values: float) -> list[float]:
    """Each value summed over all processes, in float64; every process must call it."""
    if rank_and_world_size()[1] == 1:
        return list(values)
    nccl = torch.distributed.get_backend() == "nccl"
    total = torch.tensor(values, dtype=torch.float64, device="cuda" if nccl else "cpu")
    torch.distributed.all_reduce(total)
    return total.tolist()


def all_gather(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks; every process must call it."""
    gathered = [value] * rank_and_world_size()[1]
    if len(gathered) > 1:
        torch.distributed.all_gather_object(gathered, value)
    return gathered


@contextmanager
def raise_on_all_ranks() -> Iterator[None]:
    """Re-raises at the end of the block what one process raised in it, on every process: on the others as a ValueError
    with the same text. So no process waits for one that has failed. Every process must enter the block."""
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    messages = [text for text in all_gather(None if own is None else str(own)) if text is not None]
    if messages:
        raise own or ValueError(messages[0])


def rank_batches(n: int, batch_size: int) -> Iterator[list[int]]:
    """Batches of the indices in range(n) that belong to this rank r of w: r, r + w, r + 2w, ...

    Raises ValueError if there are fewer than one for each process.
    """
    rank, world_size = rank_and_world_size()
    if n < world_size:
        raise ValueError(
            f"{n} pictures cannot be shared out to {world_size} processes; ask for more of them with n=..."
        )
    own = range(rank, n, world_size)
    for first in range(0, len(own), batch_size):
        yield list(own[first : first + batch_size])
