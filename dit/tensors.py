"""Tensors of files and networks: read without running code, named by their content, and their types by name."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dit.errors import first_line


def dtype_of(key: str, name: str, names: Sequence[str]) -> torch.dtype:
    """The type that a config's `key` names, which must be one of `names`."""
    if name not in names:
        raise ValueError(f"{key}={name}: choose one of {', '.join(names)}")
    return getattr(torch, name)


def load_tensors(path: Path) -> Any:
    """The content of a file of torch.save, read without running any code of its own, its tensors on the CPU.

    Raises ValueError where it is broken, or holds more than tensors and plain values.
    """
    zipped = zipfile.is_zipfile(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # which the original DiT's checkpoints hold
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a damaged pickle raises whatever its damage leads to
        unsafe = isinstance(error, pickle.UnpicklingError)  # PyTorch's own words advise to run the file's code
        why = "it holds no plain tensors" if unsafe else first_line(error)
    try:
        objects = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipped else []
    except Exception:  # the same
        objects = []
    if objects:
        raise ValueError(
            f"{path} holds more than tensors and plain numbers ({', '.join(sorted(objects)[:3])}); such a file may run "
            f"code and is not read. Save the weights alone where it was made: torch.save(model.state_dict(), FILE)"
        )
    raise ValueError(f"{path} is broken and cannot be read as weights: {why}")


def fingerprint(net: nn.Module, *settings: object) -> str:
    """Names a network by all its weights and by what its settings print as. A gigabyte takes about a second a core."""

    def named(item: tuple[str, Tensor]) -> str:
        name, tensor = item
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return f"{name} {tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(raw.numpy().data).hexdigest()}"

    with ThreadPoolExecutor() as pool:  # hashing leaves Python to the others
        lines = [*map(repr, settings), *pool.map(named, net.state_dict().items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


Faults = Mapping[str, Sequence[str]]  # the keys that are missing, unknown, of another shape ..., by kind


def mismatches(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Faults:
    """Why a state dict is not another one's: missing and unknown keys, other shapes, and integers in place of
    floating-point numbers or the reverse."""
    common = sorted(wanted.keys() & given.keys())
    kinds = [key for key in common if wanted[key].is_floating_point() != given[key].is_floating_point()]
    return {
        "missing": sorted(wanted.keys() - given.keys()),
        "of another shape": [
            unequal_shapes(key, given[key], wanted[key]) for key in common if wanted[key].shape != given[key].shape
        ],
        "of another type": [f"{key} {given[key].dtype} for {wanted[key].dtype}" for key in kinds],
        "unknown": sorted(given.keys() - wanted.keys()),
    }


def unequal_shapes(key: str, given: Tensor, wanted: Tensor) -> str:
    """How `refuse_mismatches` names a tensor of another shape."""
    return f"{key} {tuple(given.shape)} for {tuple(wanted.shape)}"


def refuse_mismatches(what: str, faults: Faults, remedy: str = "", most: int = 5) -> None:
    """Raises ValueError, "WHAT: 2 missing: a, b; 1 unknown: c", if there are any faults."""
    found = [
        f"{len(keys)} {kind}: {', '.join(keys[:most])}{', ...' * (len(keys) > most)}"
        for kind, keys in faults.items()
        if keys
    ]
    if found:
        raise ValueError(f"{what}: {'; '.join(found)}{remedy}")
