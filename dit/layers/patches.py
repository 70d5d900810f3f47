"""Pictures as sequences of patches, and back."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dit.layers.constants import compute_dtype, made_once
from dit.layers.embeddings import Scale, grid_rotary, grid_sinusoid

Position = Literal["sinusoid", "rotary", "cropped"]


@made_once
def sinusoid_table(
    rows: int, columns: int, width: int, scale: Scale, device: torch.device, dtype: torch.dtype
) -> Tensor:
    return grid_sinusoid(rows, columns, width, scale, device).to(dtype)


@made_once
def rotary_table(
    rows: int, columns: int, head: int, scale: Scale, before: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Cosines and sines, (2, before + rows * columns, head), of which the first `before` turn nothing."""
    angle = grid_rotary(rows, columns, head, scale, device)
    angle = torch.cat([angle.new_zeros(before, head), angle])
    return torch.stack([angle.cos(), angle.sin()]).to(dtype)


class Patches(nn.Module):
    """(B, C, H, W) -> (B, R + N, D): R register tokens (Darcet et al. 2024, arXiv:2309.16588), then N patches, row by
    row.

    position: sinusoids that are added here, or rotary angles that attention turns by; cropped: sinusoids out of the
    middle of a stored table, `largest` places a side (Stable Diffusion 3). base: the side in patches that training
    sees, or None; on a longer side, and in the table, places are squeezed so that they end where they did in training.
    overlap: pixels by which patches reach into their neighbours on all sides. What patches give there is added up, so
    that no seam is left between them.
    fit: each axis is squeezed or stretched by itself, so that every picture spans `base` places both ways (PixArt).
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
                "position=cropped needs largest, the side of its table in patches, such as largest=192; a backbone "
                "without largest, as all but MMDiT are, takes position=sinusoid or rotary"
            )
        if position != "cropped" and largest is not None:
            raise ValueError(
                f"largest={largest} is the side of a table that position={position} does not have; set "
                f"position=cropped, or largest=null"
            )
        if fit and base is None:
            raise ValueError("base=null: places are fitted to a base here; set the side that training sees in patches")
        if base is not None and base <= 0:
            raise ValueError(f"base={base} must be positive, the side that training sees in patches; or null for none")
        if registers < 0:
            raise ValueError(f"registers={registers} must not be negative")
        if overlap < 0:
            raise ValueError(f"overlap={overlap} must not be negative")
        self.channels, self.patch, self.position, self.base, self.fit = channels, patch, position, base, fit
        self.overlap, self.side = overlap, patch + 2 * overlap  # of what a patch reads and gives
        self.project = nn.Conv2d(channels, width, kernel_size=self.side, stride=patch, padding=overlap)
        self.registers = nn.Parameter(torch.randn(registers, width) * 0.02) if registers else None
        self.largest = largest
        if largest is not None:
            made = grid_sinusoid(largest, largest, width, self.scale(largest, largest), self.project.weight.device)
            # (1, largest^2, D): stored, for published ones come with theirs. A parameter that is not trained, for DDP
            # sends buffers to every process at every step.
            self.table = nn.Parameter(made[None], requires_grad=False)

    def token_values(self, outputs: int) -> int:
        """How many numbers `picture` takes of each token, for a picture with `outputs` times x's channels."""
        return self.side**2 * self.channels * outputs

    def grid(self, x: Tensor) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = x.shape[2:]
        if x.shape[1] != self.channels or height % self.patch or width % self.patch:
            raise ValueError(
                f"x of shape {tuple(x.shape)}: the backbone takes {self.channels} channels and sides that are "
                f"multiples of patch={self.patch}"
            )
        return height // self.patch, width // self.patch

    def scale(self, rows: int, columns: int) -> Scale:
        if self.base is None:
            return 1.0
        if self.fit:
            return self.base / rows, self.base / columns
        return min(1.0, self.base / max(rows, columns))

    def crop(self, rows: int, columns: int) -> Tensor:
        """The middle of the table, (rows * columns, D). Raises ValueError where it is smaller."""
        side = self.largest
        assert side is not None
        if max(rows, columns) > side:
            raise ValueError(f"x has {rows} x {columns} patches, and the table of places has largest={side} a side")
        top, left = (side - rows) // 2, (side - columns) // 2
        table = self.table.view(side, side, -1)
        return table[top : top + rows, left : left + columns].flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.grid(x)
        wide = self.project.weight.dtype  # of the residual stream, under autocast too
        tokens = self.project(x.to(wide)).flatten(2).transpose(1, 2).to(wide)  # (B, N, D)
        if self.position == "sinusoid":
            tokens = tokens + sinusoid_table(rows, columns, tokens.shape[-1], self.scale(rows, columns), x.device, wide)
        elif self.position == "cropped":
            tokens = tokens + self.crop(rows, columns).to(wide)
        if self.registers is None:
            return tokens
        return torch.cat([self.registers.to(tokens.dtype).expand(len(x), -1, -1), tokens], dim=1)

    def rotary(self, x: Tensor, head: int, before: int = 0) -> Tensor | None:
        """Cosines and sines (2, before + R + N, head) for `rotate` and heads of that width; registers, and other tokens
        `before` them, are not turned. None where places are sinusoids."""
        if self.position != "rotary":
            return None
        rows, columns = self.grid(x)
        still = before + (0 if self.registers is None else len(self.registers))
        dtype = compute_dtype(self.project.weight)
        return rotary_table(rows, columns, head, self.scale(rows, columns), still, x.device, dtype)

    def picture(self, tokens: Tensor, like: Tensor) -> Tensor:
        """(B, R + N, s s C') -> (B, C', H, W), of the sides of `like`; s is patch + 2 overlap."""
        rows, columns = self.grid(like)
        tokens = tokens[:, tokens.shape[1] - rows * columns :]
        b, p, s = len(tokens), self.patch, self.side
        if self.overlap:
            x = tokens.view(b, rows * columns, s, s, -1).permute(0, 4, 2, 3, 1).flatten(1, 3)
            return F.fold(x, (rows * p, columns * p), s, padding=self.overlap, stride=p)
        x = tokens.view(b, rows, columns, p, p, -1).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(b, -1, rows * p, columns * p)
