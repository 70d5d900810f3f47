"""The device to compute on, and its limits."""

from __future__ import annotations

import os

import torch
from torch import nn


def device_of(name: str) -> str:
    """Returns the name of a torch device; `auto` is the GPU if there is one. Raises ValueError for an unknown one."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device={name} is not a device; say auto, cpu, or a name such as cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device={name}: this machine has {torch.cuda.device_count()} CUDA devices; say device=auto")
    return name


def check_memory(backbone: nn.Module) -> None:
    """Raises ValueError if the weights are larger than this machine's memory."""
    size = sum(p.numel() * p.element_size() for p in backbone.parameters())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise ValueError(
            f"the backbone's weights take {size / 2**30:.0f} GiB, and this machine has {memory / 2**30:.0f} GiB of "
            f"memory: choose a smaller backbone.width or backbone.depth"
        )
