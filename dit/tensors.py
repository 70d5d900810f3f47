"""Tensors of files and networks: loading without running code, fingerprints, dtypes by name, and comparisons."""

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
    """Returns the dtype `name`. Raises ValueError with the config key if it is not one of `names`."""
    if name not in names:
        raise ValueError(f"{key}={name}: choose one of {', '.join(names)}")
    return getattr(torch, name)


def load_tensors(path: Path) -> Any:
    """Returns the content of a file of torch.save with its tensors on the CPU, read without running code from it.

    Raises ValueError if it is broken or contains more than tensors and plain values.
    """
    zipped = zipfile.is_zipfile(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # contained in the original DiT's checkpoints
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a damaged pickle can raise any error
        unsafe = isinstance(error, pickle.UnpicklingError)  # PyTorch's message advises to run the file's code
        why = "it contains no plain tensors" if unsafe else first_line(error)
    try:
        objects = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipped else []
    except Exception:  # see above
        objects = []
    if objects:
        raise ValueError(
            f"{path} has more than tensors and plain numbers ({', '.join(sorted(objects)[:3])}); such a file may run "
            f"code and is not read. Save only the weights, with its own code: torch.save(model.state_dict(), FILE)"
        )
    raise ValueError(f"{path} is broken and cannot be read as weights: {why}")


def fingerprint(net: nn.Module, *settings: object) -> str:
    """Returns 16 hex digits, a hash of a network's weights and of the repr of its settings. A gigabyte takes about one
    core second."""
    return fingerprint_of(net.state_dict(), *settings)


def fingerprint_of(state: Mapping[str, Tensor], *settings: object) -> str:
    """Returns the fingerprint of a network with these tensors, in their order."""

    def named(item: tuple[str, Tensor]) -> str:
        name, tensor = item
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return f"{name} {tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(raw.numpy().data).hexdigest()}"

    with ThreadPoolExecutor() as pool:  # hashing releases the GIL
        lines = [*map(repr, settings), *pool.map(named, state.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


Faults = Mapping[str, Sequence[str]]  # kind of mismatch (missing, unknown, of another shape, ...) -> keys


def mismatches(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Faults:
    """Returns the differences of two state dicts: missing and unknown keys, other shapes, and integers instead of
    floating-point numbers or the reverse."""
    common = sorted(expected.keys() & given.keys())
    kinds = [key for key in common if expected[key].is_floating_point() != given[key].is_floating_point()]
    return {
        "missing": sorted(expected.keys() - given.keys()),
        "of another shape": [
            unequal_shapes(key, given[key], expected[key]) for key in common if expected[key].shape != given[key].shape
        ],
        "of another type": [f"{key} {given[key].dtype} for {expected[key].dtype}" for key in kinds],
        "unknown": sorted(given.keys() - expected.keys()),
    }


def unequal_shapes(key: str, given: Tensor, expected: Tensor) -> str:
    """Returns the description of a tensor of another shape for `refuse_mismatches`."""
    return f"{key} {tuple(given.shape)} for {tuple(expected.shape)}"


def refuse_mismatches(what: str, faults: Faults, remedy: str = "", most: int = 5) -> None:
    """Raises ValueError, "WHAT: 2 missing: a, b; 1 unknown: c", if there are any faults."""
    found = [
        f"{len(keys)} {kind}: {', '.join(keys[:most])}{', ...' * (len(keys) > most)}"
        for kind, keys in faults.items()
        if keys
    ]
    if found:
        raise ValueError(f"{what}: {'; '.join(found)}{remedy}")
