"""The precision that training has on this machine."""

from __future__ import annotations

import sys

import torch


def has_bfloat16(accelerator: str) -> bool:
    """Whether what Lightning's accelerator `auto`, `cpu`, `gpu` and the like stand for computes in bfloat16. A CPU
    without it converts every number and is many times slower than in float32."""
    if accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available()):
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return True


def precision_here(precision: str, accelerator: str) -> str:
    """A precision of lightning.Trainer: float32 in place of bf16-mixed where the machine lacks bfloat16, with a
    warning. bf16-true stays, for the type of the weights is a choice that no machine makes."""
    if precision != "bf16-mixed" or has_bfloat16(accelerator):
        return precision
    print(f"warning: trainer.precision={precision}: this machine has no bfloat16; training in 32-true", file=sys.stderr)
    return "32-true"
