"""The feed-forward part of a transformer block."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

MlpKind = Callable[[int, int], nn.Module]  # (dim, hidden) -> (..., dim) to (..., dim)


class Mlp(nn.Module):
    """Linear, GELU (tanh form), linear: (..., D) -> (..., out)."""

    def __init__(self, dim: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.up = nn.Linear(dim, hidden)
        self.act = nn.GELU(approximate="tanh")
        self.down = nn.Linear(hidden, out or dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


class SwiGLU(nn.Module):
    """SwiGLU, (SiLU(x A) * x B) C (Shazeer 2020, arXiv:2002.05202, eq. 6): (..., D) -> (..., D). Its inner width is two
    thirds of `hidden`, so that it has as many parameters as an `Mlp`."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        inner = int(hidden * 2 / 3)
        self.up = nn.Linear(dim, 2 * inner)
        self.down = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)
