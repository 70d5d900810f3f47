"""Class labels behind the protocol of text encoders, for class-conditional backbones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from dit.types import Condition


def class_names(captions: Sequence[str]) -> list[str]:
    """Every caption once, sorted. captions: one of each picture.

    Raises ValueError where a caption has fewer than two pictures on average: such captions describe pictures, and a
    class of one picture is that picture, learned by heart.
    """
    names = sorted(set(captions))
    if 2 * len(names) > len(captions):
        raise ValueError(
            f"text_encoder=classes: {len(names)} different captions of {len(captions)} pictures are no classes, which "
            f"have two pictures or more on average; choose text_encoder=words or clip and a backbone that reads text, "
            f"or say what the classes are: text_encoder.names='[cat,dog]'"
        )
    return names


class ClassEncoder:
    """Each caption is the name of a class: label (B,) int64, its place in `names`; no text is the label len(names)."""

    length = 0

    def __init__(self, names: Sequence[str]) -> None:
        if not names:
            raise ValueError("text_encoder.names is empty: there is no caption to take classes from")
        self.places = {name: place for place, name in enumerate(names)}
        self.sizes = {"classes": len(self.places)}
        self.fingerprint = hashlib.sha256(f"classes {list(names)}".encode()).hexdigest()[:16]

    def fit(self, prompts: Sequence[str]) -> list[str]:
        return list(prompts)

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Raises ValueError for a name that is no class. The empty text is no class."""
        unknown = [prompt for prompt in prompts if prompt != "" and prompt not in self.places]
        if unknown:
            some = ", ".join(map(repr, list(self.places)[:8])) + (", ..." if len(self.places) > 8 else "")
            raise ValueError(f"prompt {unknown[0]!r} is no class of the model, whose classes are {some}")
        return Condition(label=torch.tensor([self.places.get(prompt, len(self.places)) for prompt in prompts]))

    def null(self) -> Condition:
        return self.encode([""])

    def to(self, device: torch.device | str) -> ClassEncoder:
        return self
