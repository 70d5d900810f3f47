"""Conversion between our names of weights and those of other code, in both directions, with a check of every key."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dit.tensors import refuse_mismatches, unequal_shapes


@dataclass(frozen=True)
class Rule:
    """One of our tensors, equal to the concatenation of `theirs` along the first axis.

    `{}` in a name is the number of a block. If only `theirs` has it, each of their blocks has a copy. swap: the two
    halves of the tensor are exchanged (scale and shift there, shift and scale here).
    """

    ours: str
    theirs: tuple[str, ...]
    swap: bool = False


def linear(ours: str, *theirs: str, swap: bool = False) -> list[Rule]:
    """Returns the rules of a layer with a weight and a bias."""
    return [Rule(f"{ours}.{part}", tuple(f"{name}.{part}" for name in theirs), swap) for part in ("weight", "bias")]


def joined(state: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """Returns the tensors concatenated along the first axis."""
    return torch.cat([state[name] for name in names]) if len(names) > 1 else state[names[0]]


class Layout:
    """The rules of one family of models. `ignored`: regular expressions for their tensors that ours computes."""

    def __init__(self, rules: Iterable[Rule], ignored: Sequence[str] = ()) -> None:
        self.rules, self.ignored = list(rules), [re.compile(pattern) for pattern in ignored]

    def expanded(self, depth: int) -> list[tuple[str, list[tuple[str, ...]], bool]]:
        """Returns (our name, the copies of theirs, swap) for a model of `depth` blocks."""
        table = []
        for rule in self.rules:
            theirs = [tuple(name.format(i) for name in rule.theirs) for i in range(depth)]
            if "{}" in rule.ours:
                table += [(rule.ours.format(i), [theirs[i]], rule.swap) for i in range(depth)]
            else:
                table.append((rule.ours, list(dict.fromkeys(theirs)), rule.swap))
        return table

    def load(self, net: nn.Module, state: Mapping[str, Tensor], depth: int) -> None:
        """Loads their state dict into our network. Raises ValueError with missing and unknown keys and other shapes."""
        own, found, used = net.state_dict(), {}, set()
        faults: dict[str, list[str]] = {"missing": [], "of another shape": []}
        for ours, copies, swap in self.expanded(depth):
            if ours not in own:
                continue
            used |= {name for names in copies for name in names}
            absent = [name for names in copies for name in names if name not in state]
            if absent:
                faults["missing"] += absent
                continue
            value = joined(state, copies[0])
            if any(
                not torch.equal(joined(state, names), value) for names in copies[1:]
            ):  # one copy in memory at a time
                raise ValueError(
                    f"{copies[0][0]} and its copies in other blocks differ, but this backbone has only one"
                )
            value = torch.cat(value.chunk(2)[::-1]) if swap else value
            if value.shape != own[ours].shape:
                faults["of another shape"].append(unequal_shapes(" + ".join(copies[0]), value, own[ours]))
            found[ours] = value.to(own[ours].dtype)
        faults["unknown"] = [k for k in state if k not in used and not any(p.fullmatch(k) for p in self.ignored)]
        refuse_mismatches(f"the weights do not fit {type(net).__name__}", faults)
        unset = [name for name in own if name not in found]
        assert not unset, f"no rule for {unset}"
        net.load_state_dict(found, assign=True)  # so that a network on the meta device needs no second copy

    def export(self, net: nn.Module, depth: int) -> dict[str, Tensor]:
        """Returns the state dict of our network in their names."""
        own, state = net.state_dict(), {}
        for ours, copies, swap in self.expanded(depth):
            if ours not in own:
                continue
            value = torch.cat(own[ours].chunk(2)[::-1]) if swap else own[ours]
            for names in copies:
                for name, part in zip(names, value.chunk(len(names)), strict=True):
                    state[name] = part.clone()
        return state
