"""Embeddings of time and place."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dit.layers.mlp import Mlp


def sinusoid(position: Tensor, dim: int, longest: float = 10_000.0) -> Tensor:
    """position: (...) float -> (..., dim): cosines, then sines, of geometric frequencies 1 .. 1 / longest."""
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=position.device) / half
    angle = position.float()[..., None] * torch.exp(-math.log(longest) * steps)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def grid_sinusoid(height: int, width: int, dim: int, device: torch.device | str = "cpu") -> Tensor:
    """Fixed 2-D position embedding: (height * width, dim), half of it for the row and half for the column."""
    if dim % 4:
        raise ValueError(f"width={dim} must be a multiple of 4 to embed places in two dimensions")
    y = sinusoid(torch.arange(height, device=device), dim // 2)
    x = sinusoid(torch.arange(width, device=device), dim // 2)
    rows = y[:, None].expand(height, width, -1)
    columns = x[None].expand(height, width, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


class TimeEmbedding(nn.Module):
    """The network's time, (B,) float of about 0 to 1000 -> (B, dim)."""

    def __init__(self, dim: int, frequencies: int = 256) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.mlp = Mlp(frequencies, dim, dim)

    def forward(self, time: Tensor) -> Tensor:
        return self.mlp(sinusoid(time, self.frequencies).to(self.mlp.up.weight.dtype))
