"""Low-rank updates of linear layers in a network: given to it, taken from it, scaled, and merged into its weights.
The layers that apply them are peft's."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dit.layers.embeddings import time_embeddings
from dit.tensors import fingerprint_of

TRAINED = "default"  # peft's name of the adapter that a run trains


@dataclass(frozen=True)
class Update:
    """The update of a linear layer, s b a, with s from alpha and the rank. a: (rank, in); b: (out, rank); magnitude:
    DoRA's lengths of the rows (out,), or None; bias: of b, (out,), or None."""

    a: Tensor
    b: Tensor
    alpha: float
    magnitude: Tensor | None = None
    bias: Tensor | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by the names of its fields."""
        named = {"a": self.a, "b": self.b, "magnitude": self.magnitude, "bias": self.bias}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


@dataclass(frozen=True)
class LowRank:
    """An adapter: updates by layer name. rank_stabilized: s is alpha / sqrt(rank), else alpha / rank."""

    updates: Mapping[str, Update]
    rank_stabilized: bool = False

    def scale(self, update: Update) -> float:
        """Returns s of an update."""
        rank = len(update.a)
        return update.alpha / (math.sqrt(rank) if self.rank_stabilized else rank)

    def alpha(self, scale: float, rank: int) -> float:
        """Returns the alpha that gives s at a rank."""
        return scale * (math.sqrt(rank) if self.rank_stabilized else rank)

    @property
    def dora(self) -> bool:
        """Whether its rows have learned lengths."""
        return any(update.magnitude is not None for update in self.updates.values())

    @property
    def fingerprint(self) -> str:
        """16 hex digits, a hash of its content."""
        named = {f"{name}.{part}": t for name, u in self.updates.items() for part, t in u.tensors.items()}
        scales = {name: self.scale(update) for name, update in sorted(self.updates.items())}
        return fingerprint_of(dict(sorted(named.items())), scales)


def linear_layers(network: nn.Module) -> dict[str, Any]:
    """Returns the linear layers by name; those under an adapter are named as without it."""
    from peft.tuners.lora import LoraLayer

    adapted = {name: layer.get_base_layer() for name, layer in adapted_layers(network)}
    inner = tuple(f"{name}." for name in adapted)
    found = {}
    for name, module in network.named_modules():
        if isinstance(module, LoraLayer):
            found[name] = adapted[name]
        elif isinstance(module, nn.Linear) and not name.startswith(inner):
            found[name] = module
    return found


def adapted_layers(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yields the name and the peft layer of every layer that has an adapter."""
    from peft.tuners.lora import LoraLayer

    for name, module in network.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def base_state(network: nn.Module) -> dict[str, Tensor]:
    """Returns the state dict of a network without its adapters."""
    inner = tuple(f"{place}.extra.{name}." for place, time in time_embeddings(network) for name in time.factors)
    state = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(inner)}
    return {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if ".lora_" not in name}


def exactly(names: Sequence[str]) -> str:
    """Returns the regular expression by which peft finds exactly these layers."""
    return "|".join(map(re.escape, names))


def whole_number(value: float) -> float:
    """Returns 8 for 8.0, as alphas are written in files; other numbers unchanged."""
    return int(value) if value == int(value) else value


def peft_config(adapter: LowRank, targets: str | list[str]) -> Any:
    """Returns peft's config of an adapter, with the ranks and alphas of single layers that differ from the others'."""
    from peft import LoraConfig

    ranks = {name: len(update.a) for name, update in adapter.updates.items()}
    alphas = {name: whole_number(update.alpha) for name, update in adapter.updates.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    options: dict[str, Any] = {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": targets,
        "rank_pattern": {f"^{name}": value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {f"^{name}": value for name, value in alphas.items() if value != alpha},
        "use_dora": adapter.dora,
        "use_rslora": adapter.rank_stabilized,
        "lora_bias": any(update.bias is not None for update in adapter.updates.values()),
    }
    return LoraConfig(**options)


def inject(network: nn.Module, config: Any, name: str = TRAINED) -> nn.Module:
    """Returns the same network with an adapter of peft in it. Only adapters are trained from then on."""
    from peft import inject_adapter_in_model

    inject_adapter_in_model(config, network, adapter_name=name)
    del network.peft_config  # the layers have all that is needed, and a second adapter would warn of it
    return network


def attach(network: nn.Module, adapter: LowRank, name: str) -> None:
    """Puts an adapter into a network, whose layers and sizes it must have, under a name of its own."""
    inject(network, peft_config(adapter, exactly(list(adapter.updates))), name)
    for layer_name, layer in adapted_layers(network):
        if name in layer.lora_A:
            update = adapter.updates[layer_name]
            for part, parameter in parameters_of(layer, name).items():
                value = getattr(update, part)
                parameter.data.zero_() if value is None else parameter.data.copy_(value)


def parameters_of(layer: Any, name: str) -> dict[str, nn.Parameter]:
    """Returns the parameters of an adapter in a peft layer by the fields of `Update`."""
    found = {"a": layer.lora_A[name].weight, "b": layer.lora_B[name].weight}
    if layer.lora_B[name].bias is not None:
        found["bias"] = layer.lora_B[name].bias
    if name in layer.lora_magnitude_vector:
        found["magnitude"] = layer.lora_magnitude_vector[name].weight
    return found


def collect(network: nn.Module, name: str = TRAINED) -> LowRank:
    """Returns the adapter of a name in a network."""
    updates, stabilized = {}, False
    for layer_name, layer in adapted_layers(network):
        if name in layer.lora_A:
            tensors = {part: p.detach() for part, p in parameters_of(layer, name).items()}
            updates[layer_name] = Update(**tensors, alpha=float(layer.lora_alpha[name]))
            stabilized = stabilized or bool(layer.use_rslora[name])
    return LowRank(updates, stabilized)


def set_scales(network: nn.Module, scales: Mapping[str, float]) -> None:
    """Multiplies the updates of adapters by these factors, by name, and embeddings that are trained with an update by
    the factor of `TRAINED`. One of factor 0 is not computed, so that the network without the others answers as its base
    does, bit for bit.

    Raises ValueError for DoRA together with another adapter: it sets the lengths of rows and cannot be added."""
    active = [name for name, scale in scales.items() if scale != 0]
    for layer_name, layer in adapted_layers(network):
        here = [name for name in active if name in layer.lora_A]
        if len(here) > 1 and any(name in layer.lora_magnitude_vector for name in here):
            raise ValueError(
                f"an adapter of DoRA sets the lengths of the rows of {layer_name} and cannot be added to another one: "
                f"use it alone, or export it merged and adapt the result"
            )
        layer.set_adapter(here, inference_mode=True)
        for name in here:
            layer.set_scale(name, scales[name])
    for _, time in time_embeddings(network):
        time.factors = dict.fromkeys(time.factors, scales.get(TRAINED, 1.0))


def merge(network: nn.Module) -> nn.Module:
    """Returns the same network with the active adapters added to the weights, and without their layers. Embeddings that
    are trained with an update stay, at its scale."""
    for name, layer in list(adapted_layers(network)):
        layer.merge(safe_merge=True)
        network.set_submodule(name, layer.get_base_layer())
    for _, time in time_embeddings(network):
        for name, factor in time.factors.items():
            down = time.extra[name].get_submodule("down")
            assert isinstance(down, nn.Linear)
            down.weight.data.mul_(factor)
            down.bias.data.mul_(factor)
        time.factors.clear()
    return network
