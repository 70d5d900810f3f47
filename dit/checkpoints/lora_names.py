"""The layers of other libraries that a backbone's linear layers are there, for adapters: one table for each family of
models. An adapter of three layers that are one of ours, such as q, k and v, becomes one adapter, and back, exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dit.adapters.low_rank import LowRank, Update, linear_layers
from dit.backbones.dit import DiT
from dit.backbones.flux import Flux
from dit.backbones.mmdit import MMDiT
from dit.backbones.pixart import PixArt
from dit.checkpoints import dit, flux, pixart, sd3
from dit.checkpoints.layout import Layout


@dataclass(frozen=True)
class Link:
    """Linear layers of ours and of another library with the same rows: one of `ours` is several of `theirs`, or the
    reverse. swap: the two halves of the rows are exchanged."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    swap: bool = False


def of_layout(layout: Layout, depth: int) -> list[Link]:
    """Returns the links of a layout of weights. Layers that are several copies in the other library have none."""
    return [
        Link((ours.removesuffix(".weight"),), tuple(name.removesuffix(".weight") for name in copies[0]), swap)
        for ours, copies, swap in layout.expanded(depth)
        if ours.endswith(".weight") and len(copies) == 1
    ]


def flux_original(net: Flux) -> list[Link]:
    """Returns the links to the layers of FLUX's own code, whose `linear1` is two layers of ours."""
    depths = len(net.blocks), len(net.single_blocks)
    links = of_layout(flux.layout_of(*depths, original=True), 1)
    halves = [f"single_blocks.{i}" for i in range(depths[1])]
    whole = [Link((f"{block}.attention.qkv", f"{block}.mlp"), (f"{block}.linear1",)) for block in halves]
    return [*(link for link in links if ".linear1." not in link.theirs[0]), *whole]


@dataclass(frozen=True)
class Family:
    """How other libraries name the layers of a backbone. diffusers: those of its class; original: those of the authors'
    files. loads: whether diffusers' pipeline has `load_lora_weights`."""

    diffusers: Callable[[Any], list[Link]]
    original: Callable[[Any], list[Link]]
    loads: bool = False


def by_depth(diffusers: Layout, original: Layout, loads: bool = False) -> Family:
    """Returns the family of a backbone with one list of blocks."""
    return Family(
        lambda net: of_layout(diffusers, len(net.blocks)), lambda net: of_layout(original, len(net.blocks)), loads
    )


FAMILIES: dict[type[nn.Module], Family] = {
    MMDiT: by_depth(sd3.DIFFUSERS, sd3.ORIGINAL, loads=True),
    Flux: Family(
        lambda net: of_layout(flux.layout_of(len(net.blocks), len(net.single_blocks)), 1), flux_original, loads=True
    ),
    PixArt: by_depth(pixart.DIFFUSERS, pixart.ORIGINAL),
    DiT: by_depth(dit.DIFFUSERS, dit.ORIGINAL),
}


def diffusers_links(network: nn.Module) -> list[Link]:
    """Returns the links to the layers of diffusers' class, or, for a backbone that it has none for, to its own."""
    family, own = FAMILIES.get(type(network)), linear_layers(network)
    links = [Link((name,), (name,)) for name in own] if family is None else family.diffusers(network)
    return [link for link in links if all(name in own for name in link.ours)]


def all_links(network: nn.Module) -> dict[str, Link]:
    """Returns the links to every known name of a layer, by that name: ours, diffusers' and the authors'."""
    family, own = FAMILIES.get(type(network)), linear_layers(network)
    links = [] if family is None else [*family.original(network), *family.diffusers(network)]
    found = {name: Link((name,), (name,)) for name in own}
    return found | {name: link for link in links if all(ours in own for ours in link.ours) for name in link.theirs}


def swapped(update: Update) -> Update:
    """Returns an update with the two halves of its rows exchanged."""
    return by_rows(update, lambda rows: torch.cat(rows.chunk(2)[::-1]))


def by_rows(update: Update, change: Callable[[Tensor], Tensor]) -> Update:
    """Returns an update with its tensors that have the layer's rows changed."""
    changed: dict[str, Any] = {name: change(t) for name, t in update.tensors.items() if name != "a"}
    return replace(update, **changed)


def split(adapter: LowRank, update: Update, rows: Sequence[int]) -> list[Update | None]:
    """Returns the updates of the layers that have these numbers of rows of one of ours.

    Each has the whole `a`, unless `join` had put them side by side, with zeros elsewhere: then each gets its own part,
    and None if it is zero."""
    parts = [by_rows(update, lambda t, i=i: t.split(list(rows))[i].clone()) for i in range(len(rows))]  # type: ignore[misc]
    rank, count = len(update.a), len(rows)
    if count == 1 or rank % count or not bool(update.b.any()):
        return list(parts)
    columns = [part.b.chunk(count, dim=1) for part in parts]
    if any(bool(block.any()) for i, blocks in enumerate(columns) for j, block in enumerate(blocks) if i != j):
        return list(parts)
    scale = adapter.scale(update)
    found: list[Update | None] = []
    for part, blocks, own_a, i in zip(parts, columns, update.a.chunk(count), range(count), strict=True):
        b = blocks[i]
        used = int((own_a.any(dim=1) | b.any(dim=0)).nonzero().max()) + 1 if bool(own_a.any() or b.any()) else 0
        kept = replace(part, a=own_a[:used].clone(), b=b[:, :used].clone(), alpha=rounded(adapter.alpha(scale, used)))
        found.append(None if used == 0 and part.magnitude is None else kept if used else part)
    return found


def rounded(alpha: float) -> float:
    """Returns an alpha without its last digits, which are rounding after a square root."""
    return float(f"{alpha:.12g}")


def join(adapter: LowRank, parts: Sequence[Update | None], layer: nn.Linear, rows: Sequence[int]) -> Update:
    """Returns the update of one of our layers from those of its parts by rows, None for a part without one.

    Parts with one `a` keep it. Others are put side by side: the rank is the number of parts times the largest rank. The
    scale is the first part's, and `b` of parts with another one is multiplied by the quotient."""
    given = [part for part in parts if part is not None]
    first, scales = given[0], [adapter.scale(part) for part in given]
    own = torch.linalg.norm(layer.weight.detach(), dim=1)  # the lengths of rows without an update
    lengths = stacked(parts, "magnitude", own.split(list(rows)))
    biases = stacked(parts, "bias", torch.zeros_like(own).split(list(rows)))
    shared = len(given) == len(parts) and all(torch.equal(part.a, first.a) for part in given) and len(set(scales)) == 1
    if shared:
        return Update(first.a, torch.cat([part.b for part in given]), first.alpha, lengths, biases)
    rank, scale = max(len(part.a) for part in given), scales[0]
    a, b = first.a.new_zeros(len(parts) * rank, first.a.shape[1]), first.b.new_zeros(sum(rows), len(parts) * rank)
    top = 0
    for i, (part, count) in enumerate(zip(parts, rows, strict=True)):
        if part is not None:
            own, factor = len(part.a), adapter.scale(part) / scale
            a[i * rank : i * rank + own] = part.a
            b[top : top + count, i * rank : i * rank + own] = part.b * factor if factor != 1 else part.b
        top += count
    return Update(a, b, adapter.alpha(scale, len(a)), lengths, biases)


def stacked(parts: Sequence[Update | None], name: str, absent: Sequence[Tensor]) -> Tensor | None:
    """Returns a tensor of all rows, with `absent` for the parts that have none; None if no part has any."""
    values = [None if part is None else getattr(part, name) for part in parts]
    if all(value is None for value in values):
        return None
    return torch.cat([other if value is None else value for value, other in zip(values, absent, strict=True)])


def to_ours(network: nn.Module, theirs: LowRank, faults: dict[str, list[str]]) -> LowRank:
    """Returns an adapter by the names of our layers. theirs: by names of `all_links`. Adds parts of another shape to
    `faults`, and leaves them out."""
    links, layers = all_links(network), linear_layers(network)
    found: dict[str, Update] = {}
    for link in dict.fromkeys(links[name] for name in theirs.updates):
        sizes = [layers[name].out_features for name in link.ours]
        rows = [sum(sizes) // len(link.theirs)] * len(link.theirs)
        parts = [theirs.updates.get(name) for name in link.theirs]
        odd = [
            f"{name} {tuple(tensor.shape)}"
            for name, part, count in zip(link.theirs, parts, rows, strict=True)
            for tensor in misshapen(part, layers[link.ours[0]].in_features, count)
        ]
        if odd:
            faults["of another shape"] += odd
            continue
        if len(link.ours) > 1:
            assert parts[0] is not None
            pairs = zip(link.ours, split(theirs, parts[0], sizes), strict=True)
            found |= {name: update for name, update in pairs if update is not None}
            continue
        update = join(theirs, parts, layers[link.ours[0]], rows)
        found[link.ours[0]] = swapped(update) if link.swap else update
    return LowRank(found, theirs.rank_stabilized)


def misshapen(update: Update | None, columns: int, rows: int) -> Iterable[Tensor]:
    """Returns the tensors of an update that do not fit a layer of these numbers of columns and rows."""
    if update is None:
        return []
    rank = len(update.a)
    expected = {"a": (rank, columns), "b": (rows, rank), "magnitude": (rows,), "bias": (rows,)}
    return [tensor for name, tensor in update.tensors.items() if tuple(tensor.shape) != expected[name]]


def to_theirs(network: nn.Module, adapter: LowRank) -> LowRank:
    """Returns an adapter by the names of diffusers' layers. Raises ValueError for a layer that is not one there."""
    found: dict[str, Update] = {}
    left = dict(adapter.updates)
    for link in diffusers_links(network):
        update = left.pop(link.ours[0], None)
        if update is None:
            continue
        rows = [len(update.b) // len(link.theirs)] * len(link.theirs)
        parts = split(adapter, swapped(update) if link.swap else update, rows)
        found |= {name: part for name, part in zip(link.theirs, parts, strict=True) if part is not None}
    if left:
        raise ValueError(
            f"the adapter has {', '.join(sorted(left)[:3])}, which are no single layers of diffusers' class: leave "
            f"them out of adapter.targets, or export the merged weights"
        )
    return LowRank(found, adapter.rank_stabilized)
