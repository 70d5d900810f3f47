"""Intermediate features of any network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def intermediate_features(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Yields a dict in which every forward pass of the network stores the outputs of the named modules. `blocks.3` is
    the tokens after the fourth block of a DiT, (B, N, D), with the registers before the patches. For a module with
    several outputs it is the first, that of the image. Gradients flow through them.

    `torch.compile` must be called inside the context. Raises ValueError for a name that the network does not have.
    """
    modules, found = dict(network.named_modules()), dict[str, Tensor]()
    if unknown := [name for name in names if name not in modules]:
        known = ", ".join(name for name in modules if name)[:200]
        raise ValueError(f"{type(network).__name__} has no module {unknown[0]!r}; it has {known} ...")

    def store(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            found[name] = output[0] if isinstance(output, tuple) else output

        return hook

    hooks = [modules[name].register_forward_hook(store(name)) for name in names]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
