"""Adaptive layer norm: a vector per sample that shifts, scales and gates a block (DiT, arXiv:2212.09748)."""

from torch import Tensor, nn


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x: (B, N, D); shift, scale: (B, D)."""
    return x * (1 + scale[:, None]) + shift[:, None]


class Modulation(nn.Module):
    """(B, D) -> `parts` vectors (B, D), all zero at the start, so that every gated branch begins as nothing."""

    def __init__(self, dim: int, parts: int) -> None:
        super().__init__()
        self.act = nn.SiLU()
        self.linear = nn.Linear(dim, parts * dim)
        self.parts = parts
        self.reset()

    def reset(self) -> None:
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, vector: Tensor) -> tuple[Tensor, ...]:
        return self.linear(self.act(vector)).chunk(self.parts, dim=1)
