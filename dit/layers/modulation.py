"""Adaptive layer norm: a vector that shifts, scales and gates a block (DiT, Peebles and Xie 2023, arXiv:2212.09748)."""

from torch import Tensor, nn


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x: (B, N, D); shift, scale: (B, 1, D) or (B, N, D), in the type of which x is modulated."""
    return x.to(shift.dtype) * (1 + scale) + shift


class Modulation(nn.Module):
    """(B, D), or (B, N, D) for a vector of each token -> `parts` tensors (B, 1 or N, D), all zero at the start, so that
    every gated branch begins as nothing."""

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
        parts = self.linear(self.act(vector))
        return (parts if parts.dim() == 3 else parts[:, None]).chunk(self.parts, dim=-1)
