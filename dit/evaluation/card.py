"""The card of a result: its scores together with everything that they depend on."""

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
    """The content of a card file.

    subject: what was scored: a model, its weights and how it was sampled, or existing pictures. protocol: how it was
    scored; only results of equal protocols can be compared. versions: of the software; for information, results of
    different versions can be compared. cost: nfe and seconds for each picture. scores: by column. intervals: 95 %
    confidence intervals of the scores that have them. headlines: the columns to plot, and whether higher is better.
    lost: metrics that could not score these pictures, and why. failed: why there are no scores at all, or None.
    """

    subject: Fields
    protocol: Fields
    versions: Fields
    cost: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, Sequence[float]] = field(default_factory=dict)
    headlines: Mapping[str, bool] = field(default_factory=dict)
    lost: Mapping[str, str] = field(default_factory=dict)
    failed: str | None = None

    def write(self, file: Path, parts: Mapping[str, Tensor]) -> None:
        """Writes FILE.json, and beside it FILE.safetensors with the part of each score (`dit.evaluation.statistics`):
        (N,), the contribution of every picture."""
        with replacing(file.with_suffix(".safetensors")) as temporary:
            save_file({name: values.contiguous() for name, values in parts.items()}, temporary)
        write_atomic(file, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, file: Path) -> Card:
        """Raises ValueError if the file is not a card."""
        try:
            content = read_json(file, nan=True)
            check_value(content, Mapping[str, Any], "the card")
            for name, value in content.items():
                check_value(value, str | None if name == "failed" else Mapping[str, Any], name)
            return cls(**content)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file} is not a result card of evaluate.py: {error}") from None


def read_parts(file: Path) -> dict[str, Tensor]:
    """Returns the parts that `Card.write` saved: for each column (N,) bool or float64, in the order of the pictures."""
    try:
        return load_file(file.with_suffix(".safetensors"))
    except (OSError, SafetensorError) as error:
        parts = file.with_suffix(".safetensors")
        raise ValueError(f"{parts} cannot be read: {error}; remove {file.name} too and score it again") from None


def differences(one: Fields, other: Fields, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Returns the fields in which two protocols differ, with both values; nested fields have dotted names."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted({*one, *other}):
        a, b = one.get(name), other.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found |= differences(a, b, f"{prefix}{name}.")
        elif a != b:
            found[f"{prefix}{name}"] = (a, b)
    return found
