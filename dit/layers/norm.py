"""Normalizations without weights: modulation scales and shifts their outputs."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

Norm = Callable[[int], nn.Module]


def layer_norm(dim: int) -> nn.Module:
    """Returns a LayerNorm over the last axis: mean 0, variance 1."""
    return nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)


def rms_norm(dim: int) -> nn.Module:
    """Returns an RMSNorm over the last axis: root mean square 1 (Zhang and Sennrich 2019, arXiv:1910.07467)."""
    return nn.RMSNorm(dim, eps=1e-6, elementwise_affine=False)
