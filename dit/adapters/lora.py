"""Low-rank adapters of linear layers, built by peft: LoRA (Hu et al. 2021, arXiv:2106.09685), rank-stabilized LoRA
(Kalajdzievski 2023, arXiv:2312.03732) and DoRA (Liu et al. 2024, arXiv:2402.09353)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from dit.adapters.extra import ExtraConditions
from dit.adapters.low_rank import TRAINED, adapted_layers, exactly, inject, linear_layers, merge
from dit.errors import nearest

# Our names of parts, by the names of modules on the way to a layer, or by patterns. The text stream of an MM-DiT is in
# `text` and, with its attention, MLP and modulation, in the other parts too.
PARTS = {
    "attention": ("attention", "cross", "alone", "single_blocks.*.out"),
    "mlp": ("mlp", "single_blocks.*.out"),
    "modulation": ("modulation",),
    "text": ("text", "text_in", "text_blocks", "last_text", "pooled", "context_kv", "label"),
}


class LoRA:
    """Adds a low-rank update to linear layers, and freezes all other weights: y = W x + s B A x, with A (rank, in)
    random and B (out, rank) zero at first, so that the output is unchanged.

    s is alpha / rank, or alpha / sqrt(rank) if `rank_stabilized`. dora: the rows of W + s B A get learned lengths.
    targets: names of `PARTS`, or patterns of layer names such as `blocks.0.*`. conditions: further inputs, whose
    embeddings are trained and stored with the update. Raises ValueError for a rank below 1, for a target that matches
    no linear layer, and for DoRA of a layer with rows of zeros.
    """

    separate = True  # the base stays as it is, so that a checkpoint holds only the adapter

    def __init__(
        self,
        rank: int = 16,
        alpha: float = 16,
        targets: Sequence[str] = ("attention", "mlp"),
        dora: bool = False,
        rank_stabilized: bool = False,
        conditions: ExtraConditions | None = None,
    ) -> None:
        if rank < 1:
            raise ValueError(f"adapter.rank={rank} must be at least 1")
        if not alpha > 0:
            raise ValueError(f"adapter.alpha={alpha} must be positive: the update is scaled by it")
        if not targets:
            raise ValueError(f"adapter.targets is empty: name one of {', '.join(PARTS)}, or a pattern of layer names")
        self.rank, self.alpha, self.targets = rank, alpha, list(targets)
        self.dora, self.rank_stabilized, self.conditions = dora, rank_stabilized, conditions

    def __call__(self, network: nn.Module) -> nn.Module:
        """Returns the same network, with the adapter in it; one of the same settings that it has already stays as it
        is. Raises ValueError if it has another one."""
        from peft import LoraConfig

        names = target_layers(network, self.targets)
        if held := dict(adapted_layers(network)):
            if held.keys() != set(names) or not all(map(self.is_of, held.values())):
                raise ValueError(
                    f"the network has another low-rank adapter than adapter.rank={self.rank} alpha={self.alpha:g} "
                    f"targets={self.targets}: add its update to the weights first, by `merge`"
                )
            return network
        if self.dora:
            check_rows(network, names)
        options: dict[str, Any] = {"r": self.rank, "lora_alpha": self.alpha, "target_modules": exactly(names)}
        config = LoraConfig(**options, use_dora=self.dora, use_rslora=self.rank_stabilized)
        network = inject(network, config)
        return network if self.conditions is None else self.conditions.of_adapter(network)

    def is_of(self, layer: Any) -> bool:
        """Returns whether the update of peft's layer is one of this adapter."""
        if TRAINED not in layer.lora_A:
            return False
        scale = self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)
        found = layer.r[TRAINED], layer.use_dora[TRAINED], layer.lora_alpha[TRAINED]
        return found == (self.rank, self.dora, self.alpha) and math.isclose(layer.scaling[TRAINED], scale)

    def merge(self, network: nn.Module) -> nn.Module:
        """Returns the same network without adapters: each layer's update is added to its weights. Raises ValueError if
        there are conditions."""
        return merge(network) if self.conditions is None else self.conditions.merge(network)


def target_layers(network: nn.Module, targets: Sequence[str]) -> list[str]:
    """Returns the names of the linear layers that the targets mean. Raises ValueError for one that matches none."""
    layers = list(linear_layers(network))
    found = {target: [name for name in layers if matches(name, target)] for target in targets}
    for target, names in found.items():
        if not names:
            raise ValueError(
                f"adapter.targets={target} matches none of the {len(layers)} linear layers of "
                f"{type(network).__name__}, such as {layers[0]}; use {', '.join(PARTS)}, or a pattern of layer names."
                f"{nearest(target, PARTS)}"
            )
    chosen = {name for names in found.values() for name in names}
    return [name for name in layers if name in chosen]


def matches(layer: str, target: str) -> bool:
    """Returns True if a layer is in the part that a target names, or matches its pattern."""
    if target in PARTS:
        return any(part in layer.split(".") or fnmatchcase(layer, part) for part in PARTS[target])
    return fnmatchcase(layer, target)


def check_rows(network: nn.Module, names: Sequence[str]) -> None:
    """Raises ValueError if a layer has rows of zeros, whose length DoRA would divide by."""
    for name in names:
        weight = network.get_submodule(name).weight
        assert isinstance(weight, nn.Parameter)
        if not weight.is_meta and not bool(weight.any(dim=1).all()):
            raise ValueError(
                f"adapter.dora=true divides by the length of each row, and {name} has rows of zeros, as in a network "
                f"that is not trained: give init=RUN, or other adapter.targets"
            )
