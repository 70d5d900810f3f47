"""Chooses the precision of training on this machine."""

from __future__ import annotations

import platform
import sys

import torch


def cpu_has_bfloat16() -> bool:
    """Returns True if the CPU has instructions for bfloat16. oneDNN alone also says so of x86 CPUs with AVX-512 and
    without these instructions, on which it emulates them many times slower than float32."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def has_bfloat16(accelerator: str) -> bool:
    """Returns True if the device of Lightning's accelerator (`auto`, `cpu`, `gpu`, ...) computes in bfloat16. A CPU
    without bfloat16 converts every number and is many times slower than in float32."""
    if accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available()):
        return cpu_has_bfloat16()
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return True


def precision_here(precision: str, accelerator: str) -> str:
    """Returns the precision for lightning.Trainer: 32-true, with a warning, for bf16-mixed on a machine without
    bfloat16, else `precision`. bf16-true stays, because the dtype of the weights must not depend on the machine."""
    if precision != "bf16-mixed" or has_bfloat16(accelerator):
        return precision
    print(
        f"warning: trainer.precision={precision}: this machine has no bfloat16 instructions; training in 32-true",
        file=sys.stderr,
    )
    return "32-true"
