"""How a backbone runs its blocks: one after the other, or by a function that a caller gives, such as a step cache."""

from __future__ import annotations

from collections.abc import Iterable
from inspect import signature
from typing import Any, Protocol

from torch import Tensor, nn

Inputs = tuple[Any, ...]  # tensors (B, ...), None, or tuples of these


class RunBlocks(Protocol):
    """A function that runs a stack of blocks. A backbone calls it once for each of its stacks, in order.

    blocks: each is called as block(*streams, *inputs, rotary=rotary) and returns the streams. streams: the tokens that
    the blocks change, each (B, tokens, D). inputs: what the blocks read, with one row for each sample. rotary: the same
    for all samples. image: which stream has the image; before: the number of its tokens that precede those of the
    image. Only the image's tokens reach the network output.
    """

    def __call__(
        self,
        blocks: Iterable[nn.Module],
        streams: tuple[Tensor, ...],
        inputs: Inputs,
        rotary: Tensor | None = None,
        image: int = 0,
        before: int = 0,
    ) -> tuple[Tensor, ...]: ...


def all_blocks(
    blocks: Iterable[nn.Module],
    streams: tuple[Tensor, ...],
    inputs: Inputs,
    rotary: Tensor | None = None,
    image: int = 0,
    before: int = 0,
) -> tuple[Tensor, ...]:
    """Runs every block for every sample."""
    for block in blocks:
        found = block(*streams, *inputs, rotary=rotary)
        streams = found if isinstance(found, tuple) else (found,)
    return streams


def takes_run(network: object) -> bool:
    """Returns whether a network is a backbone whose `forward` lets the caller run its blocks (the argument `run`)."""
    return isinstance(network, nn.Module) and "run" in signature(network.forward).parameters
