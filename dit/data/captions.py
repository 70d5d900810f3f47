"""Captions of an image: one or several with weights, and the choice of one for each use in training."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

Captions = tuple[tuple[str, float], ...]  # texts with positive weights, the heaviest first; () without a caption
CHOICES = ("choice_ends", "choice", "choice_weight")  # arrays of all captions of many images
FIELDS = ("text", "caption", "captions", "prompt")  # names of a caption in metadata; the first that is there


def captions_in(value: Any, where: str) -> Captions:
    """Returns the captions of a metadata field: a text, a list of texts, or a list of {"text": ..., "weight": ...}.
    Empty texts are left out. Raises ValueError, with `where`, for any other value."""
    found = []
    for item in value if isinstance(value, list | tuple) else [value]:
        text, weight = (item.get("text"), item.get("weight", 1.0)) if isinstance(item, dict) else (item, 1.0)
        if text is None or (isinstance(text, float) and math.isnan(text)):
            continue
        is_weight = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not isinstance(text, str) or not is_weight or not 0 < weight < math.inf:
            raise ValueError(
                f"{where}: a caption is a text, or a list of texts or of {{text, weight}} with positive weights, "
                f"not {str(item)[:60]!r}"
            )
        if text.strip():
            found.append((text.strip(), float(weight)))
    return tuple(sorted(found, key=lambda pair: -pair[1]))


def captions_of_row(row: dict[str, Any], where: str) -> Captions:
    """Returns the captions of a metadata row, from the first of FIELDS that it has."""
    return next((captions_in(row[name], where) for name in FIELDS if name in row), ())


def chosen_caption(weights: Sequence[float] | np.ndarray, seed: int, epoch: int, sample: int) -> int:
    """Returns the number of the caption that a use of a sample in training takes: a function of (seed, epoch, sample),
    caption i with probability weights[i] / sum(weights)."""
    if len(weights) == 1:
        return 0
    digest = hashlib.blake2b(repr(("caption", int(seed), int(epoch), int(sample))).encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64 * math.fsum(weights)
    for number, weight in enumerate(weights):
        place -= weight
        if place < 0:
            return number
    return len(weights) - 1


def choice_arrays(choices: Sequence[Captions], place: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Returns the arrays of CHOICES: where the captions of each image end (N,), and the numbers (by `place`) and
    weights of all captions, one image after the other."""
    pairs = [pair for image in choices for pair in image]
    arrays = (
        np.fromiter(accumulate(map(len, choices)), dtype=np.int64),
        np.array([place[text] for text, _ in pairs], dtype=np.int64),
        np.array([weight for _, weight in pairs], dtype=np.float64),
    )
    return dict(zip(CHOICES, arrays, strict=True))


def all_captions(source: Any) -> list[str]:
    """Returns every caption of a source, also those that are not the first of an image."""
    choices = getattr(source, "caption_choices", None)
    return list(source.captions) if choices is None else [text for image in choices for text, _ in image]
