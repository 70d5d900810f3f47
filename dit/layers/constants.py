"""What no input changes: tables that are made once, and the type that layers compute in."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import torch
from torch import Tensor

MOST = 64  # tables of one kind that are kept

P = ParamSpec("P")


def made_once(make: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """The function, its tensors kept by its (hashable) arguments, which name the device and are all that it depends on.
    They are shared, so no caller may change them. They belong to no module: no state dict, copy or broadcast has them.

    A compiled network has the computation in its graph. Tables are made outside inference mode, so that training can
    use what sampling has made."""
    kept: dict[object, Tensor] = {}

    @wraps(make)
    def found(*args: P.args, **options: P.kwargs) -> Tensor:
        if torch.compiler.is_compiling():
            return make(*args, **options)
        key = (args, tuple(options.items()))
        if key not in kept:
            if len(kept) >= MOST:
                kept.clear()
            with torch.inference_mode(False):
                kept[key] = make(*args, **options)
        return kept[key]

    return found


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type in which a linear map of x, with weights of x's type, answers: autocast's where that is on."""
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype
