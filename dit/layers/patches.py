"""Patch embedding of images, and its inverse."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dit.layers.constants import cached_tensor, compute_dtype
from dit.layers.embeddings import Scale, grid_rotary, grid_sinusoid

Position = Literal["sinusoid", "rotary", "cropped"]


@cached_tensor
def sinusoid_table(
    rows: int, columns: int, width: int, scale: Scale, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Returns `grid_sinusoid` in a dtype, cached."""
    return grid_sinusoid(rows, columns, width, scale, device).to(dtype)


@cached_tensor
def rotary_table(
    rows: int, columns: int, head: int, scale: Scale, before: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Returns cosines and sines, (2, before + rows * columns, head); the first `before` are those of angle 0."""
    angle = grid_rotary(rows, columns, head, scale, device)
    angle = torch.cat([angle.new_zeros(before, head), angle])
    return torch.stack([angle.cos(), angle.sin()]).to(dtype)


def pack(x: Tensor, channels: int, patch: int) -> Tensor:
    """Returns the patches of x (B, C, H, W) as tokens (B, N, C patch^2), N in row-major order, each with its channels
    first (FLUX's packed latents). Raises ValueError if x has other channels, or sides that are no multiples."""
    if x.shape[1] != channels or x.shape[2] % patch or x.shape[3] % patch:
        raise ValueError(
            f"x of shape {tuple(x.shape)}: the backbone takes {channels} channels and sides that are multiples of "
            f"patch={patch}"
        )
    return F.pixel_unshuffle(x, patch).flatten(2).mT


def unpack(tokens: Tensor, rows: int, columns: int, patch: int) -> Tensor:
    """Returns the picture (B, C, H, W) of tokens (B, rows * columns, C patch^2): the inverse of `pack`."""
    return F.pixel_shuffle(tokens.mT.unflatten(2, (rows, columns)), patch)


class Patches(nn.Module):
    """Patch embedding, (B, C, H, W) -> (B, R + N, D): R register tokens (Darcet et al. 2024, arXiv:2309.16588), then N
    patches in row-major order.

    position: sinusoid, a fixed embedding that is added here; rotary, angles for attention; cropped, the centre of a
    stored table of sinusoids with `largest` positions per side (Stable Diffusion 3).
    base: the side in patches during training, or None. On a longer side, and in the table, positions are interpolated
    so that they end where they did in training.
    fit: positions are interpolated on each axis separately, so that every image spans `base` of them (PixArt).
    overlap: the number of pixels by which patches overlap their neighbours on each side. Outputs in the overlap are
    summed, which avoids seams.
    Raises ValueError for options that do not fit together.
    """

    def __init__(
        self,
        channels: int,
        patch: int,
        width: int,
        position: Position = "sinusoid",
        registers: int = 0,
        base: float | None = None,
        fit: bool = False,
        largest: int | None = None,
        overlap: int = 0,
    ) -> None:
        super().__init__()
        if position not in ("sinusoid", "rotary", "cropped"):
            raise ValueError(f"position={position!r} is not one of sinusoid, rotary, cropped")
        if position == "cropped" and largest is None:
            raise ValueError(
                "position=cropped needs largest, the side of its table in patches, such as largest=192; backbones "
                "without this option, all but MMDiT, need position=sinusoid or rotary"
            )
        if position != "cropped" and largest is not None:
            raise ValueError(
                f"largest={largest} is the side of a table that position={position} does not have; set "
                f"position=cropped, or largest=null"
            )
        if fit and base is None:
            raise ValueError("base=null: this backbone needs base, the side in patches during training")
        if base is not None and base <= 0:
            raise ValueError(f"base={base} must be positive, the side in patches during training; or null")
        if registers < 0:
            raise ValueError(f"registers={registers} must not be negative")
        if overlap < 0:
            raise ValueError(f"overlap={overlap} must not be negative")
        self.channels, self.patch, self.position, self.base, self.fit = channels, patch, position, base, fit
        self.overlap, self.side = overlap, patch + 2 * overlap  # side: of a patch's input and output
        self.project = nn.Conv2d(channels, width, kernel_size=self.side, stride=patch, padding=overlap)
        self.registers = nn.Parameter(torch.randn(registers, width) * 0.02) if registers else None
        self.largest = largest
        if largest is not None:
            table = grid_sinusoid(largest, largest, width, self.scale(largest, largest), self.project.weight.device)
            # (1, largest^2, D), in the state dict, because published weights contain it. It is a frozen parameter,
            # because DDP broadcasts buffers at every step.
            self.table = nn.Parameter(table[None], requires_grad=False)

    def token_values(self, outputs: int) -> int:
        """Returns the number of values per token that `picture` needs, for `outputs` channels per channel of x."""
        return self.side**2 * self.channels * outputs

    def grid(self, x: Tensor) -> tuple[int, int]:
        """Returns the rows and columns of patches of x. Raises ValueError if x's channels or sides do not fit."""
        height, width = x.shape[2:]
        if x.shape[1] != self.channels or height % self.patch or width % self.patch:
            raise ValueError(
                f"x of shape {tuple(x.shape)}: the backbone takes {self.channels} channels and sides that are "
                f"multiples of patch={self.patch}"
            )
        return height // self.patch, width // self.patch

    def scale(self, rows: int, columns: int) -> Scale:
        """Returns the factor of positions for a grid of patches."""
        if self.base is None:
            return 1.0
        if self.fit:
            return self.base / rows, self.base / columns
        return min(1.0, self.base / max(rows, columns))

    def crop(self, rows: int, columns: int) -> Tensor:
        """Returns the centre of the table, (rows * columns, D). Raises ValueError if the table is smaller."""
        side = self.largest
        assert side is not None
        if max(rows, columns) > side:
            raise ValueError(f"x has {rows} x {columns} patches, but the position table has largest={side} per side")
        top, left = (side - rows) // 2, (side - columns) // 2
        table = self.table.view(side, side, -1)
        return table[top : top + rows, left : left + columns].flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.grid(x)
        dtype = self.project.weight.dtype  # that of the residual stream, also under autocast
        tokens = self.project(x.to(dtype)).flatten(2).transpose(1, 2).to(dtype)  # (B, N, D)
        if self.position == "sinusoid":
            width, scale = tokens.shape[-1], self.scale(rows, columns)
            tokens = tokens + sinusoid_table(rows, columns, width, scale, x.device, dtype)
        elif self.position == "cropped":
            tokens = tokens + self.crop(rows, columns).to(dtype)
        if self.registers is None:
            return tokens
        return torch.cat([self.registers.to(tokens.dtype).expand(len(x), -1, -1), tokens], dim=1)

    def rotary(self, x: Tensor, head: int, before: int = 0) -> Tensor | None:
        """Returns cosines and sines (2, before + R + N, head) for `rotate`, with head the width of a head; registers
        and the `before` tokens in front of them are not rotated. Returns None if position is not rotary."""
        if self.position != "rotary":
            return None
        rows, columns = self.grid(x)
        unrotated = before + (0 if self.registers is None else len(self.registers))
        dtype = compute_dtype(self.project.weight)
        return rotary_table(rows, columns, head, self.scale(rows, columns), unrotated, x.device, dtype)

    def picture(self, tokens: Tensor, like: Tensor) -> Tensor:
        """Returns the image (B, C', H, W) of tokens (B, R + N, s s C'), with `like`'s height and width; s is patch + 2
        overlap."""
        rows, columns = self.grid(like)
        tokens = tokens[:, tokens.shape[1] - rows * columns :]
        b, p, s = len(tokens), self.patch, self.side
        if self.overlap:
            x = tokens.view(b, rows * columns, s, s, -1).permute(0, 4, 2, 3, 1).flatten(1, 3)
            return F.fold(x, (rows * p, columns * p), s, padding=self.overlap, stride=p)
        x = tokens.view(b, rows, columns, p, p, -1).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(b, -1, rows * p, columns * p)
