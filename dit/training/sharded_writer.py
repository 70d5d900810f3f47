"""Writes sharded checkpoints (`dit.checkpoints.sharded`) while training goes on, whole or not at all."""

from __future__ import annotations

import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor

from dit.checkpoints.sharded import REST, cause, map_tensors
from dit.distributed import all_gather, rank_and_world_size
from dit.errors import first_line
from dit.files import sync


class ShardedWriter:
    """Writes one checkpoint folder at a time. Every rank writes its part into a folder with a hidden name, which is
    renamed when all ranks have written all files.

    asynchronous: return as soon as the tensors are copied to the CPU, and write while training goes on. group: the
    process group of all ranks on the CPU, to be set before the first use.
    """

    def __init__(self, asynchronous: bool) -> None:
        self.asynchronous = asynchronous
        self.group: Any = None
        self.saving: Future[Any] | None = None
        self.target = Path()  # of the checkpoint that is being saved
        self.superseded: list[Path] = []  # checkpoints to remove when it is complete

    def save(self, checkpoint: dict[str, Any], target: Path) -> None:
        """Begins to write a checkpoint, and completes the one before. Raises ValueError if that failed. Every rank must
        call it."""
        self.complete()
        self.target = target
        tensors: dict[str, Tensor] = {}

        def taken(name: str, tensor: Tensor) -> Tensor:
            if not isinstance(tensor, DTensor):
                return tensor
            tensors[name] = tensor.detach()
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

        rest, failed = map_tensors(checkpoint, taken), None
        if rank_and_world_size()[0] == 0:
            try:
                for left in target.parent.glob(".step_*.ckpt.*"):  # by a run that was killed
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
                self.growing.mkdir(parents=True)
                torch.save(rest, self.growing / REST)
            except (OSError, RuntimeError) as error:
                failed = f"cannot write {target}: {first_line(error)}"
        if failed := all_gather(failed)[0]:
            raise ValueError(failed)
        writer = HuggingFaceStorageWriter(str(self.growing), save_distributed=True)
        saving: Any = dcp.async_save(tensors, storage_writer=writer, process_group=self.group)
        self.saving = saving
        if not self.asynchronous:
            self.complete()

    @property
    def growing(self) -> Path:
        return self.target.with_name(f".{self.target.name}.tmp")

    def publish_if_written(self) -> None:
        """Completes a checkpoint that is written. An error waits for `complete`, which all ranks call together."""
        if self.saving is not None and self.saving.done() and self.saving.exception() is None:
            self.publish()

    def complete(self) -> None:
        """Waits until all ranks have written the checkpoint. Raises ValueError if one could not. It does not wait for
        their training, which may have failed."""
        if self.saving is None:
            return
        error = self.saving.exception()
        if error is not None:
            self.saving = None
            if rank_and_world_size()[0] == 0:
                shutil.rmtree(self.growing, ignore_errors=True)
            raise ValueError(f"cannot write {self.target}: {cause(error)}") from error
        self.publish()

    def publish(self) -> None:
        """Gives the written checkpoint its name and removes those that it replaces."""
        self.saving, superseded, self.superseded = None, self.superseded, []
        if rank_and_world_size()[0] > 0:
            return
        for file in [*self.growing.iterdir(), self.growing]:
            sync(file)
        remove(self.target)
        self.growing.rename(self.target)
        sync(self.target.parent)
        for path in superseded:
            remove(path)

    def remove(self, path: Path) -> None:
        """Removes a checkpoint, after the one that is being written is complete."""
        if self.saving is not None:
            self.superseded.append(path)
        elif rank_and_world_size()[0] == 0:
            remove(path)


def remove(path: Path) -> None:
    """Removes a checkpoint file, or a folder, which is renamed first, so that a kill leaves no part of it."""
    if path.is_dir():
        hidden = path.with_name(f".{path.name}.old")
        path.rename(hidden)
        shutil.rmtree(hidden)
    else:
        path.unlink(missing_ok=True)
