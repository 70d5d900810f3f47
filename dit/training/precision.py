"""Chooses the precision of training on this machine."""

from __future__ import annotations

import sys

import torch


def has_bfloat16(accelerator: str) -> bool:
    """Returns True if the device of Lightning's accelerator (`auto`, `cpu`, `gpu`, ...) computes in bfloat16. A CPU
    without bfloat16 converts every number and is many times slower than in float32."""
    if accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available()):
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return True


def precision_here(precision: str, accelerator: str) -> str:
    """Returns the precision for lightning.Trainer: 32-true, with a warning, for bf16-mixed on a machine without
    bfloat16, else `precision`. bf16-true stays, because the dtype of the weights must not depend on the machine."""
    if precision != "bf16-mixed" or has_bfloat16(accelerator):
        return precision
    print(f"warning: trainer.precision={precision}: this machine has no bfloat16; training in 32-true", file=sys.stderr)
    return "32-true"
