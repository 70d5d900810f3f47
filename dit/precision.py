"""The precision that networks are sampled in: what a device offers, and where it applies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

PRECISIONS = ("auto", "32", "tf32", "bf16")


def check_precision(asked: str | int) -> str:
    """The name of a precision. Raises ValueError for another one."""
    if str(asked) not in PRECISIONS:
        raise ValueError(f"precision={asked}: choose one of {', '.join(PRECISIONS)}")
    return str(asked)


def precision_on(device: torch.device, asked: str) -> str:
    """32, tf32 or bf16 on a device. auto is bf16 on CUDA GPUs that have it, and 32 elsewhere.

    Raises ValueError for tf32 on a device without it.
    """
    cuda = device.type == "cuda"
    if asked == "auto":
        return "bf16" if cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "32"
    if asked == "tf32" and not (cuda and torch.cuda.get_device_capability(device) >= (8, 0)):
        raise ValueError(f"precision=tf32: {device} has none, only NVIDIA GPUs since Ampere do; say 32 or bf16")
    return asked


def network_autocast(device: torch.device, precision: str) -> torch.autocast:
    """Around a call of the network: its matrix products are in bfloat16 with bf16, and as they are with the others."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def float32_products(device: torch.device, precision: str) -> Iterator[None]:
    """Inside, matrix products and convolutions of float32 on CUDA are in TF32 with tf32 and bf16, and in float32 with
    32; afterwards as before."""
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
