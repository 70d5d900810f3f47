"""The card of a result: a score never stands without all that it was made with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dit.annotations import check_value
from dit.files import read_json, replacing, write_atomic

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Card:
    """subject: what was scored: the model, its weights, and how it was sampled, or somebody's pictures. protocol: how
    it was scored; only results of one protocol may be compared. versions: of the software; told, and never a reason to
    refuse. cost: nfe and seconds of a picture. scores by column, with intervals that hold the true value in 95 % of
    cases where they are known; headlines: the columns worth a plot, and whether higher is better. lost: metrics that
    could not judge these pictures, and why. failed: why there are no scores at all."""

    subject: Fields
    protocol: Fields
    versions: Fields
    cost: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, Sequence[float]] = field(default_factory=dict)
    headlines: Mapping[str, bool] = field(default_factory=dict)
    lost: Mapping[str, str] = field(default_factory=dict)
    failed: str | None = None

    def write(self, file: Path, each: Mapping[str, Tensor]) -> None:
        """FILE.json, and beside it FILE.safetensors with every score's part in each picture."""
        with replacing(file.with_suffix(".safetensors")) as growing:
            save_file({name: values.contiguous() for name, values in each.items()}, growing)
        write_atomic(file, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, file: Path) -> Card:
        """Raises ValueError where the file is no card."""
        try:
            held = read_json(file, nan=True)
            check_value(held, Mapping[str, Any], "the card")
            for name, value in held.items():
                check_value(value, str | None if name == "failed" else Mapping[str, Any], name)
            return cls(**held)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file} is no result card of evaluate.py: {error}") from None


def read_parts(file: Path) -> dict[str, Tensor]:
    """What `Card.write` keeps beside a card: for each column (N,) bool or float64, in the order of the pictures."""
    try:
        return load_file(file.with_suffix(".safetensors"))
    except (OSError, SafetensorError) as error:
        parts = file.with_suffix(".safetensors")
        raise ValueError(f"{parts} cannot be read: {error}; remove {file.name} too and score it again") from None


def differences(one: Fields, other: Fields, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """The fields, dotted where they are nested, in which two cards' protocols differ, with both values."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted({*one, *other}):
        a, b = one.get(name), other.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found |= differences(a, b, f"{prefix}{name}.")
        elif a != b:
            found[f"{prefix}{name}"] = (a, b)
    return found
