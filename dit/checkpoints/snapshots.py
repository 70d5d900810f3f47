"""The snapshots of averages in RUN/snapshots, one safetensors file for each step and width."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dit.errors import first_line
from dit.files import replacing

FILE = re.compile(r"step_([0-9]{7,18})_width_([0-9]+(?:\.[0-9]+)?(?:e-[0-9]+)?)\.safetensors")

Snapshot = tuple[int, float]  # step, at least 1, and width


def file_name(step: int, width: float) -> str:
    return f"step_{step:07d}_width_{width:g}.safetensors"


def snapshots_of(run: Path) -> list[Snapshot]:
    """Returns the snapshots of a run in order."""
    names = [file.name for file in (run / "snapshots").glob("step_*.safetensors")]
    found = {(int(match[1]), float(match[2])) for name in names if (match := FILE.fullmatch(name))}
    return sorted(snapshot for snapshot in found if snapshot[0] > 0 and file_name(*snapshot) in names)


def write_snapshot(run: Path, step: int, width: float, average: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Writes an average, completely or not at all. Raises ValueError if it cannot be written, or if a value is too
    large for the dtype."""
    file = run / "snapshots" / file_name(step, width)
    rounded = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in average.items()}
    lost = [name for name, tensor in rounded.items() if not tensor.isfinite().all()]
    if lost:
        raise ValueError(
            f"cannot write {file}: {lost[0]} is not finite in {dtype}; use callbacks.posthoc_ema.dtype=bfloat16"
        )
    try:
        with replacing(file) as growing:
            save_file(rounded, growing)
    except SafetensorError as error:
        raise ValueError(f"cannot write {file}: {first_line(error)}") from error


def remove_later(run: Path, step: int) -> None:
    """Removes the snapshots after a step."""
    for snapshot in snapshots_of(run):
        if snapshot[0] > step:
            (run / "snapshots" / file_name(*snapshot)).unlink()


def weighted_sum(files: Sequence[Path], factors: Sequence[float]) -> dict[str, Tensor]:
    """Returns the sum of factor i times the tensors of file i, in float32.

    Raises ValueError if a file is broken or has other tensors than the first.
    """
    sums: dict[str, Tensor] = {}
    for file, factor in zip(files, factors, strict=True):
        try:
            with safe_open(file, "pt") as snapshot:
                names = list(snapshot.keys())
                if file is files[0]:
                    shapes = {name: snapshot.get_slice(name).get_shape() for name in names}
                    sums = {name: torch.zeros(shape, dtype=torch.float32) for name, shape in shapes.items()}
                if sums.keys() != set(names):
                    raise ValueError("it has other weights than the snapshots before")
                for name in names:
                    sums[name].add_(snapshot.get_tensor(name), alpha=factor)
        except (OSError, SafetensorError, RuntimeError, ValueError) as error:  # RuntimeError: of another shape
            raise ValueError(f"snapshot {file} cannot be used: {first_line(error)}; remove it") from None
    return sums
