"""The floating-point operations of a training step, and the rate that a device can reach."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dit.types import Condition

# Dense bfloat16 FLOP/s of matrix products, from the makers' data sheets, by a part of the device's name. The first
# that matches is used.
PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "A10": 125e12,
}


def peak_of(device: torch.device, precision: str) -> float | None:
    """Returns the FLOP/s of a device's matrix products, or None if they are not known: only those of some GPUs in
    bfloat16 and float16 are."""
    if device.type != "cuda" or not precision.startswith(("bf16", "16")):
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def meta_copy(network: nn.Module) -> nn.Module:
    """Returns a copy of a network without values, on the meta device, with the same parameters frozen."""
    tensors: list[Tensor] = [*network.parameters(), *network.buffers()]
    memo: dict[int, Any] = {}
    for tensor in tensors:
        empty: Tensor = torch.empty_like(tensor, device="meta")
        if isinstance(tensor, nn.Parameter):
            empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = empty
    return copy.deepcopy(network, memo)


def training_flops(network: nn.Module, x: Tensor, condition: Condition) -> int:
    """Returns the FLOPs of one forward and backward pass of a `meta_copy` for one sample of a batch of x (B, ...) and
    its condition. What frozen parameters do not need is not counted, nor what is computed again in the backward pass.
    """

    def like(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor[:1], device="meta")

    parts = {name: like(part) for name, part in condition.parts.items()}
    extra = {name: parts.pop(name) for name in condition.extra}
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        output = network(like(x), torch.empty(1, device="meta"), Condition(**parts, extra=extra))
        if output.requires_grad:
            output.sum().backward()
    return int(counter.get_total_flops())
