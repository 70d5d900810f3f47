"""Class labels behind the protocol of text encoders, for class-conditional backbones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from dit.errors import shortened, some
from dit.types import Condition


def class_names(captions: Sequence[str], known: Sequence[str] = ()) -> list[str]:
    """Every caption once, sorted; or the classes of a run that is gone on with (`known`), in their order. captions: one
    of each picture; pictures without captions have no class.

    Raises ValueError where a caption has fewer than two pictures on average: such captions describe pictures, and a
    class of one picture is that picture, learned by heart. And for captions that are no class of the earlier run.
    """
    names = sorted(set(captions) - {""})
    if 2 * len(names) > len(captions):
        raise ValueError(
            f"text_encoder=classes: {len(names)} different captions of {len(captions)} pictures are no classes, which "
            f"have two pictures or more on average; choose text_encoder=words or clip and a backbone that reads text, "
            f"or say what the classes are: text_encoder.names='[cat,dog]'"
        )
    if known and (new := [name for name in names if name not in known]):
        raise ValueError(
            f"the run to go on with has {len(known)} classes, and not {some(map(repr, new), 8)}: its network has no "
            f"place for more; start a new run, or leave these pictures out"
        )
    return list(known) or names


class ClassEncoder:
    """Each caption is the name of a class: label (B,) int64, its place in `names`; no text is the label len(names). A
    class can also be named by its place, as "7", where no class is called so. Without names it is an encoder of
    pictures without captions."""

    length = 0

    def __init__(self, names: Sequence[str]) -> None:
        by_number = {str(place): place for place in range(len(names))}
        self.names = list(names)
        self.places = by_number | {name: place for place, name in enumerate(names)} | {"": len(names)}
        self.sizes = {"classes": len(names)}
        self.fingerprint = hashlib.sha256(f"classes {list(names)}".encode()).hexdigest()[:16]

    def fit(self, prompts: Sequence[str]) -> list[str]:
        return list(prompts)

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Raises ValueError for a name that is no class. The empty text is no class."""
        unknown = [prompt for prompt in prompts if prompt not in self.places]
        if unknown:
            found = f"whose classes are {some(map(repr, self.names), 8)}, or 0 to {len(self.names) - 1}"
            raise ValueError(
                f"prompt {shortened(unknown[0])!r} is no class of the model, "
                f"{found if self.names else 'which was trained on pictures without captions and takes no prompt'}"
            )
        return Condition(label=torch.tensor([self.places[prompt] for prompt in prompts]))

    def null(self) -> Condition:
        return self.encode([""])

    def to(self, device: torch.device | str) -> ClassEncoder:
        return self
