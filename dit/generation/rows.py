"""What is recorded of a picture: its row in the table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from dit.generation.work import Job

Row = dict[str, Any]


def row_of(job: Job, about: Mapping[str, Any], pixels: Tensor | None = None) -> Row:
    """Returns the row of a picture. about: what is the same for all pictures of its model; pixels: (3, H, W) uint8 as
    delivered, or None if there is no picture."""
    row: Row = {"index": job.index, "name": job.name, "prompt": job.prompt, "seed": job.seed, **about}
    if pixels is None:
        return row
    height, width = pixels.shape[1:]
    return row | {"width": width, "height": height, "pixels_sha256": pixels_sha256(pixels)}


def pixels_sha256(pixels: Tensor) -> str:
    """Returns the SHA-256 of a picture's values (3, H, W) uint8: the bytes of red, green and blue of each pixel, row by
    row, as `Image.tobytes` gives them for a file."""
    return hashlib.sha256(array_of(pixels).tobytes()).hexdigest()


def array_of(pixels: Tensor) -> np.ndarray:
    """Returns (3, H, W) uint8 as (H, W, 3)."""
    return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())


def flat(row: Mapping[str, Any]) -> Row:
    """Returns a row for tables without nested fields: these as JSON text."""
    return {name: json_of(value) if isinstance(value, dict | list) else value for name, value in row.items()}


def json_of(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
