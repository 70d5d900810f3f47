"""A text encoder that maps captions to class labels, for class-conditional backbones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from dit.errors import shortened, some
from dit.types import Condition


def class_names(captions: Sequence[str], known: Sequence[str] = ()) -> list[str]:
    """Returns the distinct captions, sorted; or the classes of a resumed run (`known`), in their order.

    captions: one per picture; an empty caption is no class. Raises ValueError if there are fewer than two pictures per
    caption on average (the captions then describe single pictures, which the model would memorise), or if a caption is
    not one of the known classes.
    """
    names = sorted(set(captions) - {""})
    if 2 * len(names) > len(captions):
        raise ValueError(
            f"text_encoder=classes: {len(names)} different captions of {len(captions)} pictures are not classes, which "
            f"have two pictures or more on average; choose text_encoder=words or clip and a backbone that reads text, "
            f"or list the classes: text_encoder.names='[cat,dog]'"
        )
    if known and (new := [name for name in names if name not in known]):
        raise ValueError(
            f"the resumed run has {len(known)} classes, and not {some(map(repr, new), 8)}: its network cannot take "
            f"new classes; start a new run, or leave these pictures out"
        )
    return list(known) or names


class ClassEncoder:
    """Encodes a class name as its label (B,) int64, the index in `names`; the null condition is the label len(names).

    A prompt can also be the index, such as "7", unless a class has that name. Without names only the empty text can be
    encoded (pictures without captions)."""

    length = 0

    def __init__(self, names: Sequence[str]) -> None:
        by_index = {str(index): index for index in range(len(names))}
        self.names = list(names)
        self.labels = by_index | {name: index for index, name in enumerate(names)} | {"": len(names)}
        self.sizes = {"classes": len(names)}
        self.fingerprint = hashlib.sha256(f"classes {list(names)}".encode()).hexdigest()[:16]

    def fit(self, prompts: Sequence[str]) -> list[str]:
        return list(prompts)

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Returns the labels. The empty text is the null condition. Raises ValueError for an unknown class name."""
        unknown = [prompt for prompt in prompts if prompt not in self.labels]
        if unknown:
            known = f"whose classes are {some(map(repr, self.names), 8)}, or 0 to {len(self.names) - 1}"
            raise ValueError(
                f"prompt {shortened(unknown[0])!r} is not a class of the model, "
                f"{known if self.names else 'which was trained on pictures without captions and takes no prompt'}"
            )
        return Condition(label=torch.tensor([self.labels[prompt] for prompt in prompts]))

    def null(self) -> Condition:
        return self.encode([""])

    def to(self, device: torch.device | str) -> ClassEncoder:
        return self
