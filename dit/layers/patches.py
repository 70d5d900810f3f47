"""Pictures as sequences of patches, and back."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from dit.layers.embeddings import grid_rotary, grid_sinusoid

Position = Literal["sinusoid", "rotary"]


class Patches(nn.Module):
    """(B, C, H, W) -> (B, R + N, D): R register tokens (Darcet et al. 2024, arXiv:2309.16588), then N patches, row by
    row.

    position: sinusoids that are added here, or rotary angles that attention turns by. base: the side in patches that
    training sees, or None; on a longer side places are squeezed so that they end where they did in training.
    """

    def __init__(
        self,
        channels: int,
        patch: int,
        width: int,
        position: Position = "sinusoid",
        registers: int = 0,
        base: int | None = None,
    ) -> None:
        super().__init__()
        if position not in ("sinusoid", "rotary"):
            raise ValueError(f"position={position!r} is not one of sinusoid, rotary")
        self.channels, self.patch, self.position, self.base = channels, patch, position, base
        self.project = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
        self.registers = nn.Parameter(torch.randn(registers, width) * 0.02) if registers else None

    def grid(self, x: Tensor) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = x.shape[2:]
        if x.shape[1] != self.channels or height % self.patch or width % self.patch:
            raise ValueError(
                f"x of shape {tuple(x.shape)}: the backbone takes {self.channels} channels and sides that are "
                f"multiples of patch={self.patch}"
            )
        return height // self.patch, width // self.patch

    def scale(self, rows: int, columns: int) -> float:
        return 1.0 if self.base is None else min(1.0, self.base / max(rows, columns))

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.grid(x)
        tokens = self.project(x.to(self.project.weight.dtype)).flatten(2).transpose(1, 2)  # (B, N, D)
        if self.position == "sinusoid":
            where = grid_sinusoid(rows, columns, tokens.shape[-1], self.scale(rows, columns), x.device)
            tokens = tokens + where.to(tokens.dtype)
        if self.registers is None:
            return tokens
        return torch.cat([self.registers.to(tokens.dtype).expand(len(x), -1, -1), tokens], dim=1)

    def rotary(self, x: Tensor, head: int) -> Tensor | None:
        """(R + N, head) angles for heads of that width, zero for registers; None where places are sinusoids."""
        if self.position == "sinusoid":
            return None
        rows, columns = self.grid(x)
        angle = grid_rotary(rows, columns, head, self.scale(rows, columns), x.device)
        count = 0 if self.registers is None else len(self.registers)
        return torch.cat([angle.new_zeros(count, head), angle])

    def picture(self, tokens: Tensor, like: Tensor) -> Tensor:
        """(B, R + N, p p C') -> (B, C', H, W), of the sides of `like`."""
        rows, columns = self.grid(like)
        tokens = tokens[:, tokens.shape[1] - rows * columns :]
        b, p = len(tokens), self.patch
        x = tokens.view(b, rows, columns, p, p, -1).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(b, -1, rows * p, columns * p)
