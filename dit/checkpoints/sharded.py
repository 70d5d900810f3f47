"""Sharded checkpoints: a folder with the same content as a checkpoint file, whose sharded tensors are in safetensors
files, some per rank, written and read by torch.distributed.checkpoint. All else is in one file, with empty tensors on
the meta device in place of the sharded ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.api import CheckpointException

from dit.errors import first_line
from dit.tensors import load_tensors

REST = "checkpoint.pt"


def map_tensors(tree: Any, change: Callable[[str, Tensor], Any], name: str = "") -> Any:
    """Returns a copy of nested dicts, lists and tuples with every tensor replaced by `change(name, tensor)`. The name
    is the keys on the way to the tensor, joined by slashes."""
    if isinstance(tree, Tensor):
        return change(name, tree)
    if isinstance(tree, dict):
        return {key: map_tensors(value, change, f"{name}/{key}") for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(map_tensors(value, change, f"{name}/{i}") for i, value in enumerate(tree))
    return tree


def cause(error: BaseException) -> str:
    """Returns the first line of an error, of a CheckpointException that of the first rank that failed."""
    failures = list(getattr(error, "failures", {}).values())
    return first_line(failures[0][0] if failures else error)


def read_rest(folder: Path) -> dict[str, Any]:
    """Returns the content of a sharded checkpoint with its sharded tensors on the meta device, after a check that the
    files of all shards are there and complete. Raises ValueError if not."""
    rest = load_tensors(folder / REST)
    expected: dict[str, torch.Size] = {}
    map_tensors(rest, lambda name, tensor: expected.setdefault(name, tensor.shape) if tensor.is_meta else None)
    try:
        found: dict[str, Any] = dict(HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata)
    except Exception as error:  # a damaged file can raise any error
        raise ValueError(f"{folder} is broken: {first_line(error)}") from None
    for name, shape in expected.items():
        rows = sum(chunk.sizes[0] for chunk in found[name].chunks) if name in found else 0
        if rows != shape[0]:
            raise ValueError(f"{folder} is broken: it has {rows} of {shape[0]} rows of {name.removeprefix('/')}")
    return rest


def fill(folder: Path, rest: Any, make: Callable[[Tensor], Tensor], group: Any = None) -> Any:
    """Returns `rest` with the sharded tensors of the folder in place of its meta tensors.

    make: meta tensor -> the tensor to read into, a plain one or a DTensor. group: the process group of the ranks that
    read together; None if this process reads alone. Raises ValueError if the files are broken."""
    tensors: dict[str, Tensor] = {}

    def place(name: str, tensor: Tensor) -> Tensor:
        return tensors.setdefault(name, make(tensor)) if tensor.is_meta else tensor

    filled = map_tensors(rest, place)
    reader = HuggingFaceStorageReader(str(folder))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*assuming the intent is to load in a single process.*")
            dcp.load(tensors, storage_reader=reader, process_group=group, no_dist=group is None)
    except (Exception, CheckpointException) as error:  # a damaged file can raise any error
        raise ValueError(f"{folder} is broken: {cause(error)}") from None
    return filled


def read_whole(folder: Path) -> dict[str, Any]:
    """Returns the content of a sharded checkpoint with complete tensors on the CPU, as that of a checkpoint file.
    Raises ValueError if it is broken."""
    return fill(folder, read_rest(folder), lambda meta: torch.empty_like(meta, device="cpu"))
