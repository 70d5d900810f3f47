"""Nearest-neighbour distances of feature vectors, computed in blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

ENTRIES = 2**24  # per block of distances: 128 MB in float64


def squared_distances(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Yields the squared distances (N, M) of a (N, D) and b (M, D) in blocks (rows, M) float64.

    Computed in float64 because of cancellation; values below the rounding error are set to 0.
    """
    pieces = b.split(4096)
    piece_norms = [piece.double().square().sum(1) for piece in pieces]
    for part in a.split(max(1, ENTRIES // len(b))):
        rows = part.double()
        row_norms = rows.square().sum(1, keepdim=True)
        block = []
        for piece, norms in zip(pieces, piece_norms, strict=True):
            scale = row_norms + norms
            distances = scale - 2 * rows @ piece.double().T
            block.append(torch.where(distances > 1e-12 * scale, distances, 0))
        yield torch.cat(block, dim=1)


def kth_neighbour(features: Tensor, k: int, step: int = 1) -> Tensor:
    """Returns the squared distance of every `step`-th row of (N, D) to its k-th nearest other row."""
    return torch.cat([block.kthvalue(k + 1).values for block in squared_distances(features[::step], features)])
