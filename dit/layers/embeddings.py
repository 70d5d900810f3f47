"""Embeddings of time, place and class."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dit.layers.constants import made_once
from dit.types import Condition

Scale = float | tuple[float, float]  # one for both axes, or that of y and that of x


@made_once
def frequencies(count: int, longest: float, shift: float, device: torch.device) -> Tensor:
    """(count,) float32, falling from 1 geometrically."""
    steps = torch.arange(count, dtype=torch.float32, device=device) / (count - shift)
    return torch.exp(-math.log(longest) * steps)


def sinusoid(position: Tensor, dim: int, longest: float = 10_000.0, shift: float = 0.0) -> Tensor:
    """position: (...) float -> (..., dim) float32: cosines, then sines, of geometric frequencies 1 .. 1 / longest.
    shift is taken from the number of frequencies in their exponents: 0 leaves out the last, 1 includes it."""
    angle = position.float()[..., None] * frequencies(dim // 2, longest, shift, position.device)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def places(height: int, width: int, scale: Scale, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """x and y of each cell of a grid, row by row, in units of 1 / scale cells: two of (height * width,) float32."""
    along_y, along_x = scale if isinstance(scale, tuple) else (scale, scale)
    y, x = torch.meshgrid(
        along_y * torch.arange(height, dtype=torch.float32, device=device),
        along_x * torch.arange(width, dtype=torch.float32, device=device),
        indexing="ij",
    )
    return x.flatten(), y.flatten()


def grid_sinusoid(height: int, width: int, dim: int, scale: Scale = 1.0, device: torch.device | str = "cpu") -> Tensor:
    """Fixed 2-D position embedding (height * width, dim), as DiT has it: half for x and half for y, each sines, then
    cosines.

    scale: below 1 the places of a larger grid are squeezed into the range that training has seen.
    """
    if dim % 4:
        raise ValueError(f"width={dim} must be a multiple of 4 to embed places in two dimensions")
    halves = (sinusoid(position, dim // 2).roll(dim // 4, -1) for position in places(height, width, scale, device))
    return torch.cat(list(halves), dim=-1)


def grid_rotary(height: int, width: int, dim: int, scale: Scale = 1.0, device: torch.device | str = "cpu") -> Tensor:
    """Angles of 2-D rotary embeddings (height * width, dim) for heads of width dim (Su et al. 2021, arXiv:2104.09864):
    half of the pairs turn with x, half with y."""
    if dim % 4:
        raise ValueError(f"heads of width {dim} must be a multiple of 4 wide to turn with two dimensions")
    frequency = 100.0 ** -(torch.arange(dim // 4, dtype=torch.float32, device=device) / (dim // 4))
    angle = torch.cat([position[:, None] * frequency for position in places(height, width, scale, device)], dim=1)
    return torch.cat([angle, angle], dim=1)


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turns the pairs (x_i, x_(i + D/2)) of (..., N, D) by angles whose cosines and sines are `turn`, (2, N, D)."""
    half = x.shape[-1] // 2
    crossed = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    cos, sin = turn.to(x.dtype)
    return x * cos + crossed * sin


class TimeEmbedding(nn.Module):
    """The network's time, (B,) float of about 0 to 1000 -> (B, dim): sinusoids, linear, SiLU, linear (DiT).

    shift: as in `sinusoid`; diffusers' DiT has 1 where the original has 0. extra: embeddings of further numbers of the
    condition, by their names in `Condition.extra`, which are added; `dit.adapters.extra.ExtraConditions` puts them
    here.
    """

    def __init__(self, dim: int, frequencies: int = 256, shift: float = 0.0) -> None:
        super().__init__()
        self.frequencies, self.shift = frequencies, shift
        self.up, self.down = nn.Linear(frequencies, dim), nn.Linear(dim, dim)
        self.extra = nn.ModuleDict()

    def forward(self, time: Tensor, condition: Condition | None = None) -> Tensor:
        waves = sinusoid(time, self.frequencies, shift=self.shift).to(self.up.weight.dtype)
        vector = self.down(nn.functional.silu(self.up(waves)))
        for name, embedding in self.extra.items():
            if condition is None or name not in condition.extra:
                raise ValueError(f"the network reads {name!r} of Condition.extra, and the condition does not have it")
            vector = vector + embedding(condition.extra[name])
        return vector


class LabelEmbedding(nn.Module):
    """A learned vector for each of `classes` classes, and one more, the last, for no class: (B,) int64 -> (B, dim)."""

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(classes + 1, dim)

    def forward(self, label: Tensor) -> Tensor:
        return self.table(label)
