"""The feed-forward part of a transformer block."""

from torch import Tensor, nn


class Mlp(nn.Module):
    """Linear, GELU (tanh form), linear: (..., D) -> (..., out)."""

    def __init__(self, dim: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.up = nn.Linear(dim, hidden)
        self.act = nn.GELU(approximate="tanh")
        self.down = nn.Linear(hidden, out or dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))
