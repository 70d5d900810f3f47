"""The adapters of a model that is sampled: what its run has trained, and others from files, each with a scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dit.adapters.low_rank import (
    TRAINED,
    LowRank,
    adapted_layers,
    attach,
    base_state,
    collect,
    set_scales,
)
from dit.annotations import check_value
from dit.checkpoints.lora import read_adapter
from dit.layers.embeddings import time_embeddings
from dit.tensors import fingerprint_of


@dataclass(frozen=True)
class Given:
    """An adapter to add. path: a run, a .safetensors file, or a folder of diffusers or peft; scale: the factor of its
    updates; weights: those of a run."""

    path: str
    scale: float = 1.0
    weights: str = "ema"


Entries = str | Sequence[str | Mapping[str, str | float]] | None  # of a config: paths, or mappings of `Given`


def given_adapters(entries: Any) -> list[Given]:
    """Returns the adapters that a config names. Raises ValueError for other keys, and values of another type."""
    found = []
    for entry in [entries] if isinstance(entries, str | Mapping) else entries or ():
        fields = {"path": entry} if isinstance(entry, str) else dict(entry)
        if "path" not in fields or not fields.keys() <= {"path", "scale", "weights"}:
            raise ValueError(f"adapters={fields}: each has a path and may have a scale and weights, nothing else")
        for name, value in fields.items():
            check_value(value, float if name == "scale" else str, f"adapters.{name}")
        found.append(Given(**fields))
    return found


class Adapters:
    """The adapters in a network: those that `given` adds, and the trained one if there is one. `scale` multiplies the
    scales of all; at 0 the network answers as its base does, bit for bit.

    Raises ValueError for an adapter of other weights or another network, and for DoRA together with another adapter.
    """

    def __init__(self, network: nn.Module, given: Sequence[Given]) -> None:
        self.network, self.factor = network, 1.0
        own = any(TRAINED in layer.lora_A for _, layer in adapted_layers(network))
        self.scales = {TRAINED: 1.0} if own else {}
        self.description: list[dict[str, Any]] = []  # of those added, for a card
        base = fingerprint_of(base_state(network)) if given else ""
        read = [read_adapter(one.path, network, base, one.weights) for one in given]
        for place, (one, adapter) in enumerate(zip(given, read, strict=True)):
            name = f"given_{place}"
            attach(network, adapter, name)
            self.scales[name] = float(one.scale)
            self.description.append({"content": adapter.fingerprint, "scale": float(one.scale)})
        self.name = " + ".join(f"{Path(one.path).name} x {one.scale:g}" for one in given)
        self.scale(1.0)

    def scale(self, factor: float) -> None:
        """Multiplies the scales of all adapters by a factor."""
        self.factor = factor
        set_scales(self.network, {name: factor * scale for name, scale in self.scales.items()})

    @property
    def only(self) -> LowRank:
        """The adapter. Raises ValueError if there are several, if it has another scale than 1, or if embeddings of
        further inputs are a part of it."""
        scales = [self.factor * scale for scale in self.scales.values()]
        if scales != [1.0]:
            raise ValueError(
                f"{len(scales)} adapters with the scales {scales} cannot be written as one adapter: give one with "
                f"scale 1, or export the merged weights"
            )
        inputs = [name for _, time in time_embeddings(self.network) for name in time.factors]
        if inputs:
            raise ValueError(
                f"format=adapter: the adapter has the embeddings of {', '.join(inputs)} too, which no other library "
                f"supports; say format=safetensors for all weights by dit's own names"
            )
        return collect(self.network, next(iter(self.scales)))


def adapters_of(network: nn.Module, given: Sequence[Given] = ()) -> Adapters | None:
    """Returns the adapters of a network after those of `given` are added; None if it has none."""
    found = Adapters(network, given)
    return found if found.scales else None
