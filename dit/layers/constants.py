"""Cached constant tensors, and the dtype that layers compute in."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import torch
from torch import Tensor

MAX_CACHED = 64  # tensors per function; the cache is cleared when it is full

P = ParamSpec("P")


def cached_tensor(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Decorates a function that returns a constant tensor: results are cached by the arguments, which must be hashable
    and include the device. Callers share the tensors and must not modify them. They are in no module, so no state dict,
    copy or broadcast contains them.

    In a compiled network the computation is part of the graph. Tensors are created outside inference mode, so that
    training can use those that sampling has cached."""
    cache: dict[object, Tensor] = {}

    @wraps(function)
    def cached(*args: P.args, **options: P.kwargs) -> Tensor:
        if torch.compiler.is_compiling():
            return function(*args, **options)
        key = (args, tuple(options.items()))
        if key not in cache:
            if len(cache) >= MAX_CACHED:
                cache.clear()
            with torch.inference_mode(False):
                cache[key] = function(*args, **options)
        return cache[key]

    return cached


def compute_dtype(x: Tensor) -> torch.dtype:
    """Returns the output dtype of a linear layer for x, with weights of x's dtype: autocast's if it is on."""
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype
