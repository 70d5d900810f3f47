"""Attention, once for all backbones."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dit.layers.embeddings import rotate

SHORT = 2**16  # scores per head, up to which they may all be held at once


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """q: (B, H, N, D / H); k, v: (B, H, M, D / H); mask: (B, M) bool, False hides a key. Returns (B, N, D)."""
    k, v = k.to(q.dtype), v.to(q.dtype)
    keys = None if mask is None else mask[:, None, None, :]
    if keys is None and q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.shape[2] * k.shape[2] <= SHORT:
        y = _attend_by_products(q, k, v)
    else:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
    return y.transpose(1, 2).flatten(2)


def _attend_by_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What torch's attention computes, by plain matrix products: a CPU's fused kernel is half as fast in bf16."""
    with torch.autocast("cpu", enabled=False):  # which would take the softmax in float32
        batch, heads = q.shape[:2]
        q, k, v = (part.flatten(0, 1) for part in (q, k, v))  # (B H, N, D / H)
        scores = torch.baddbmm(q.new_empty(()), q, k.mT, beta=0, alpha=q.shape[-1] ** -0.5)  # (B H, N, M)
        return torch.bmm(scores.softmax(-1), v).unflatten(0, (batch, heads))


class HeadNorm(nn.RMSNorm):
    """RMSNorm whose weight takes the type of x, as autocast leaves it in float32 and so without a fused kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Multi-head attention of x over itself; with `context_dim` also over a context, whose tokens join as further keys
    and values; with `cross` over the context alone.

    qk_norm: normalise queries and keys per head (RMSNorm, Dehghani et al. 2023, arXiv:2302.05442).
    """

    def __init__(
        self, dim: int, heads: int, context_dim: int | None = None, cross: bool = False, qk_norm: bool = True
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"width={dim} is not a multiple of heads={heads}")
        self.heads = heads
        self.q = nn.Linear(dim, dim) if cross else None
        self.qkv = None if cross else nn.Linear(dim, 3 * dim)
        self.context_kv = None if context_dim is None else nn.Linear(context_dim, 2 * dim)
        self.q_norm = HeadNorm(dim // heads, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = HeadNorm(dim // heads, eps=1e-6) if qk_norm else nn.Identity()
        self.out = nn.Linear(dim, dim)

    def _split(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        return tuple(
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, N, D / H)
            for part in projected.chunk(parts, dim=-1)
        )

    def project(self, x: Tensor, rotary: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x: (B, N, D) -> q, k, v, each (B, H, N, D / H). rotary: (2, N, D / H), by which q and k are turned."""
        assert self.qkv is not None
        q, k, v = self._split(self.qkv(x), 3)
        q, k = self.q_norm(q), self.k_norm(k)
        return (q, k, v) if rotary is None else (rotate(q, rotary), rotate(k, rotary), v)

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, rotary: Tensor | None = None
    ) -> Tensor:
        """x: (B, N, D). context: (B, L, C). mask: bool, (B, L) over the context where there is one, else (B, N);
        False hides a key."""
        if self.q is not None:
            assert self.context_kv is not None
            assert context is not None
            (q,) = self._split(self.q(x), 1)
            k, v = self._split(self.context_kv(context), 2)  # (B, H, L, D / H)
            return self.out(attend(self.q_norm(q), self.k_norm(k), v, mask))
        q, k, v = self.project(x, rotary)  # (B, H, N, D / H)
        if self.context_kv is not None and context is not None:
            context_k, context_v = self._split(self.context_kv(context), 2)  # (B, H, L, D / H)
            k = torch.cat([k, self.k_norm(context_k)], dim=2)  # (B, H, N + L, D / H)
            v = torch.cat([v, context_v], dim=2)
            if mask is not None:
                mask = torch.cat([mask.new_ones(len(x), x.shape[1]), mask], dim=1)
        return self.out(attend(q, k, v, mask))
