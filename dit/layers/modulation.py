"""Adaptive layer norm: a vector that shifts, scales and gates a block (DiT, Peebles and Xie 2023, arXiv:2212.09748)."""

from torch import Tensor, nn


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Returns x (1 + scale) + shift in shift's dtype. x: (B, N, D); shift, scale: (B, 1, D) or (B, N, D)."""
    return x.to(shift.dtype) * (1 + scale) + shift


class Modulation(nn.Module):
    """Maps a vector (B, D), or one per token (B, N, D), to `parts` tensors (B, 1 or N, D). They are initially zero, so
    that every gated branch initially adds 0."""

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
