"""Distributed processes: rank and world size, barrier, reductions, and the samples of each rank. A thin layer over
`torch.distributed` that also works in a single process without a process group."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


def is_initialized() -> bool:
    """Returns whether this process is part of a process group."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def in_submitit_job() -> bool:
    """Returns whether this process is a task of a job of submitit."""
    return "SUBMITIT_EXECUTOR" in os.environ


def describe_submitit_job() -> None:
    """Sets torchrun's environment variables, such as RANK, in a task of submitit. Nothing in other processes."""
    if in_submitit_job():
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)


def launched_externally() -> bool:
    """Returns whether torchrun, srun or submitit has started this process as one of several."""
    return any(int(os.environ.get(name, "1")) > 1 for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"))


def init_process_group() -> None:
    """Initializes the process group of processes that torchrun or submitit has started, each on its own GPU if there is
    one. Does nothing in a single process, or if the process group exists."""
    if launched_externally() and not is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def destroy_process_group() -> None:
    """Destroys the process group if there is one."""
    if is_initialized():
        torch.distributed.destroy_process_group()


def rank_and_world_size() -> tuple[int, int]:
    """Returns the rank of this process and the number of processes; (0, 1) without a process group."""
    return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if is_initialized() else (0, 1)


def barrier() -> None:
    """Blocks until every process has called it."""
    if rank_and_world_size()[1] > 1:
        torch.distributed.barrier()


def all_reduce_sum(*values: float) -> list[float]:
    """Returns each value summed over all processes, in float64. Every process must call it."""
    if rank_and_world_size()[1] == 1:
        return list(values)
    nccl = torch.distributed.get_backend() == "nccl"
    total = torch.tensor(values, dtype=torch.float64, device="cuda" if nccl else "cpu")
    torch.distributed.all_reduce(total)
    return total.tolist()


def all_gather(value: T) -> list[T]:
    """Returns the values of all processes, in the order of their ranks. Every process must call it."""
    gathered = [value] * rank_and_world_size()[1]
    if len(gathered) > 1:
        torch.distributed.all_gather_object(gathered, value)
    return gathered


@contextmanager
def raise_on_all_ranks() -> Iterator[None]:
    """If one process raises in the block, every process raises at its end: the others a ValueError with the same text.
    So no process waits for one that has failed. Every process must enter the block."""
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    messages = [text for text in all_gather(None if own is None else str(own)) if text is not None]
    if messages:
        raise own or ValueError(messages[0])


def rank_batches(n: int, batch_size: int) -> Iterator[list[int]]:
    """Yields batches of the indices in range(n) of this rank r of w: r, r + w, r + 2w, ...

    Raises ValueError if n is less than the number of processes.
    """
    rank, world_size = rank_and_world_size()
    if n < world_size:
        raise ValueError(
            f"n={n} pictures are fewer than the {world_size} processes: set n to at least {world_size}, or use fewer "
            f"processes"
        )
    own = range(rank, n, world_size)
    for first in range(0, len(own), batch_size):
        yield list(own[first : first + batch_size])
