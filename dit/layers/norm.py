"""Normalisations without weights of their own: modulation scales and shifts what they give."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

Norm = Callable[[int], nn.Module]


def layer_norm(dim: int) -> nn.Module:
    """Mean 0, variance 1 over the last axis."""
    return nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)


def rms_norm(dim: int) -> nn.Module:
    """Root mean square 1 over the last axis (Zhang and Sennrich 2019, arXiv:1910.07467)."""
    return nn.RMSNorm(dim, eps=1e-6, elementwise_affine=False)
