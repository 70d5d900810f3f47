"""Attention, once for all backbones."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dit.layers.constants import compute_dtype
from dit.layers.embeddings import rotate

SHORT = 2**16  # scores per head, up to which they may all be held at once
# Whether oneDNN multiplies matrices in bf16 on this CPU. Where it does not, torch's own products are slower than the
# fused kernel: ten times on a CPU with AVX2 alone.
FAST_PRODUCTS = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def key_bias(mask: Tensor | None, x: Tensor, before: int = 0, after: int = 0) -> Tensor | None:
    """What attention adds to its scores so that it reads no padding, made once for all blocks: (B, 1, 1, M), 0 for a
    key that is read and -inf for one that is hidden, in the type that layers compute in at x.

    mask: (B, L) bool, False hides a key; None, where nothing is hidden, stays None. before, after: how many keys that
    are always read stand around the L. Rows lie a multiple of 8 apart, as CUDA's kernels for a bias want them.
    """
    if mask is None:
        return None
    length = before + mask.shape[1] + after
    bias = torch.zeros_like(mask, dtype=compute_dtype(x)).masked_fill(~mask, float("-inf"))
    return F.pad(bias, (before, after + -length % 8))[:, None, None, :length]


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """q: (B, H, N, D / H); k, v: (B, H, M, D / H); bias: (B, 1, 1, M) as from `key_bias`. Returns (B, N, D)."""
    k, v = k.to(q.dtype), v.to(q.dtype)
    bias = None if bias is None else bias.to(q.dtype)
    short = q.shape[2] * k.shape[2] <= SHORT
    if FAST_PRODUCTS and q.dtype == torch.bfloat16 and q.device.type == "cpu" and short:
        y = _attend_by_products(q, k, v, bias)
    else:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return y.transpose(1, 2).flatten(2)


def _attend_by_products(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """What torch's attention computes, by plain matrix products: where these are fast in bf16, a CPU's fused kernel
    is half as fast."""
    with torch.autocast("cpu", enabled=False):  # which would take the softmax in float32
        batch, heads = q.shape[:2]
        q, k, v = (part.flatten(0, 1) for part in (q, k, v))  # (B H, N, D / H)
        start = q.new_empty(()) if bias is None else bias.expand(-1, heads, -1, -1).flatten(0, 1)  # (B H, 1, M)
        beta = 0 if bias is None else 1
        scores = torch.baddbmm(start, q, k.mT, beta=beta, alpha=q.shape[-1] ** -0.5)  # (B H, N, M)
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
        self, x: Tensor, context: Tensor | None = None, bias: Tensor | None = None, rotary: Tensor | None = None
    ) -> Tensor:
        """x: (B, N, D). context: (B, L, C). bias: as from `key_bias`, of x's keys and then the context's, or of those
        that there are."""
        if self.q is not None:
            assert self.context_kv is not None
            assert context is not None
            (q,) = self._split(self.q(x), 1)
            k, v = self._split(self.context_kv(context), 2)  # (B, H, L, D / H)
            return self.out(attend(self.q_norm(q), self.k_norm(k), v, bias))
        q, k, v = self.project(x, rotary)  # (B, H, N, D / H)
        if self.context_kv is not None and context is not None:
            context_k, context_v = self._split(self.context_kv(context), 2)  # (B, H, L, D / H)
            k = torch.cat([k, self.k_norm(context_k)], dim=2)  # (B, H, N + L, D / H)
            v = torch.cat([v, context_v], dim=2)
        return self.out(attend(q, k, v, bias))
