"""Attention, once for all backbones."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head self-attention over x; with `context`, its tokens join as further keys and values.

    Queries and keys are normalised per head (RMSNorm, Dehghani et al. 2023, arXiv:2302.05442).
    """

    def __init__(self, dim: int, heads: int, context: bool = False) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"width={dim} is not a multiple of heads={heads}")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.context_kv = nn.Linear(dim, 2 * dim) if context else None
        self.q_norm, self.k_norm = nn.RMSNorm(dim // heads, eps=1e-6), nn.RMSNorm(dim // heads, eps=1e-6)
        self.out = nn.Linear(dim, dim)

    def _heads(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        b, n, d = projected.shape
        return projected.view(b, n, parts, self.heads, d // parts // self.heads).permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """x: (B, N, D). context: (B, L, D). mask: bool, (B, L) over the context where there is one, else (B, N);
        False hides a key."""
        q, k, v = self._heads(self.qkv(x), 3)  # (B, H, N, D / H)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.context_kv is not None and context is not None:
            context_k, context_v = self._heads(self.context_kv(context), 2)  # (B, H, L, D / H)
            k = torch.cat([k, self.k_norm(context_k)], dim=2)  # (B, H, N + L, D / H)
            v = torch.cat([v, context_v], dim=2)
            if mask is not None:
                mask = torch.cat([mask.new_ones(len(x), x.shape[1]), mask], dim=1)
        keys = None if mask is None else mask[:, None, None, :]
        y = F.scaled_dot_product_attention(q, k.to(q.dtype), v, attn_mask=keys)
        return self.out(y.transpose(1, 2).flatten(2))
