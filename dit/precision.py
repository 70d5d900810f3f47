"""The precision of networks during sampling."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

PRECISIONS = ("auto", "32", "tf32", "bf16")


def check_precision(precision: str | int) -> str:
    """Returns the precision as text. Raises ValueError unless it is one of PRECISIONS."""
    if str(precision) not in PRECISIONS:
        raise ValueError(f"precision={precision}: choose one of {', '.join(PRECISIONS)}")
    return str(precision)


def precision_on(device: torch.device, precision: str) -> str:
    """Returns the precision to use on a device: 32, tf32 or bf16. auto is bf16 on CUDA GPUs that support it, and 32
    elsewhere. Raises ValueError for tf32 on a device without it."""
    cuda = device.type == "cuda"
    if precision == "auto":
        return "bf16" if cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "32"
    if precision == "tf32" and not (cuda and torch.cuda.get_device_capability(device) >= (8, 0)):
        raise ValueError(
            f"precision=tf32: {device} has no TF32, which needs an NVIDIA GPU since Ampere: use 32 or bf16"
        )
    return precision


def network_autocast(device: torch.device, precision: str) -> torch.autocast:
    """Returns the autocast context of a network call: to bfloat16 if precision is bf16, otherwise disabled."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def float32_products(device: torch.device, precision: str) -> Iterator[None]:
    """Inside the context, float32 matrix products and convolutions on CUDA use TF32 if precision is tf32 or bf16, and
    float32 if it is 32. The earlier settings are restored at the end."""
    if device.type != "cuda":
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = precision != "32"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
