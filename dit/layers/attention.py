"""Multi-head attention, shared by all backbones."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dit.layers.constants import compute_dtype
from dit.layers.embeddings import rotate

MAX_SCORES = 2**16  # the largest number of attention scores per head that is materialized
# Whether oneDNN supports bf16 matrix products on this CPU. If not, torch's own products are slower than the fused
# kernel: ten times on a CPU that has only AVX2.
FAST_PRODUCTS = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def key_bias(mask: Tensor | None, x: Tensor, before: int = 0, after: int = 0) -> Tensor | None:
    """Returns the additive attention mask, computed once for all blocks: (B, 1, 1, M), 0 for a visible key and -inf for
    a masked one, in the dtype that layers compute in for x; or None if mask is None.

    mask: (B, L) bool, False masks a key. before, after: the numbers of always visible keys before and after the L keys.
    The row stride is a multiple of 8, as CUDA's attention kernels require.
    """
    if mask is None:
        return None
    length = before + mask.shape[1] + after
    bias = torch.zeros_like(mask, dtype=compute_dtype(x)).masked_fill(~mask, float("-inf"))
    return F.pad(bias, (before, after + -length % 8))[:, None, None, :length]


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns attention outputs (B, N, D). q: (B, H, N, D / H); k, v: (B, H, M, D / H); bias: (B, 1, 1, M) from
    `key_bias`."""
    k, v = k.to(q.dtype), v.to(q.dtype)
    bias = None if bias is None else bias.to(q.dtype)
    short = q.shape[2] * k.shape[2] <= MAX_SCORES
    if FAST_PRODUCTS and q.dtype == torch.bfloat16 and q.device.type == "cpu" and short:
        y = _attend_by_products(q, k, v, bias)
    else:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return y.transpose(1, 2).flatten(2)


def _attend_by_products(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Returns the same as `F.scaled_dot_product_attention`, by matrix products: on CPUs with fast bf16 products the
    fused kernel is half as fast."""
    with torch.autocast("cpu", enabled=False):  # autocast would compute the softmax in float32
        batch, heads = q.shape[:2]
        q, k, v = (part.flatten(0, 1) for part in (q, k, v))  # (B H, N, D / H)
        start = q.new_empty(()) if bias is None else bias.expand(-1, heads, -1, -1).flatten(0, 1)  # (B H, 1, M)
        beta = 0 if bias is None else 1
        scores = torch.baddbmm(start, q, k.mT, beta=beta, alpha=q.shape[-1] ** -0.5)  # (B H, N, M)
        return torch.bmm(scores.softmax(-1), v).unflatten(0, (batch, heads))


class HeadNorm(nn.RMSNorm):
    """RMSNorm with its weight cast to x's dtype. Autocast leaves the weight in float32, for which there is no fused
    kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Multi-head self-attention of x; with `context_dim` also over a context, whose tokens are further keys and values;
    with `cross` cross-attention, over the context only.

    qk_norm: normalize queries and keys per head (RMSNorm, Dehghani et al. 2023, arXiv:2302.05442).
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
        """Returns q, k, v, each (B, H, N, D / H), of x (B, N, D). rotary: (2, N, D / H), applied to q and k."""
        assert self.qkv is not None
        q, k, v = self._split(self.qkv(x), 3)
        q, k = self.q_norm(q), self.k_norm(k)
        return (q, k, v) if rotary is None else (rotate(q, rotary), rotate(k, rotary), v)

    def forward(
        self, x: Tensor, context: Tensor | None = None, bias: Tensor | None = None, rotary: Tensor | None = None
    ) -> Tensor:
        """Returns (B, N, D). x: (B, N, D). context: (B, L, C). bias: from `key_bias`, for the keys of x (if not
        `cross`) followed by those of the context (if any)."""
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
