"""Who is near to whom among feature vectors, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

ENTRIES = 2**24  # of a block of distances: 128 MB in float64


def squared_distances(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """(rows, M) float64 blocks of the squared distances of a (N, D) and b (M, D), which together have N rows.

    In float64, as a difference of large numbers; what is nearer than its rounding counts as the same place.
    """
    pieces = b.split(4096)
    lengths = [piece.double().square().sum(1) for piece in pieces]
    for part in a.split(max(1, ENTRIES // len(b))):
        rows = part.double()
        own = rows.square().sum(1, keepdim=True)
        block = []
        for piece, length in zip(pieces, lengths, strict=True):
            scale = own + length
            apart = scale - 2 * rows @ piece.double().T
            block.append(torch.where(apart > 1e-12 * scale, apart, 0))
        yield torch.cat(block, dim=1)


def kth_neighbour(features: Tensor, k: int, step: int = 1) -> Tensor:
    """Squared distance of each, or of every `step`-th, of (N, D) to its k-th nearest other."""
    return torch.cat([block.kthvalue(k + 1).values for block in squared_distances(features[::step], features)])
