"""Fidelity and diversity by manifold estimates: precision and recall, density and coverage.

A manifold is the union of balls around pictures. A ball's radius is the distance to the k-th nearest neighbour in the
same set (real or generated).
"""

from __future__ import annotations

import torch

from dit.metrics.base import FeatureMetric, MetricResult
from dit.metrics.extractors import Extractor
from dit.metrics.neighbours import kth_neighbour, squared_distances


class PrecisionRecall(FeatureMetric):
    """precision: the share of generated pictures in a ball of a real one; recall: the share of real pictures in a ball
    of a generated one (Kynkäänniemi et al. 2019, arXiv:1904.06991). suffix: ends the column names, for features of
    another network than Inception."""

    def __init__(self, extractor: Extractor, layer: str = "pool", k: int = 3, suffix: str = "") -> None:
        super().__init__(extractor, layer)
        self.k, self.names = check_k(k), (f"precision{suffix}", f"recall{suffix}")
        self.headlines = dict.fromkeys(self.names, True)

    def compute_scores(self) -> MetricResult:
        generated, real = self.feature_pair(self.k + 1, f"k={self.k}")
        radius_generated, radius_real = kth_neighbour(generated, self.k), kth_neighbour(real, self.k)
        precise = torch.cat([(block <= radius_real).any(1) for block in squared_distances(generated, real)])
        recalled = torch.cat([(block <= radius_generated).any(1) for block in squared_distances(real, generated)])
        shares = [float(part.double().mean()) for part in (precise, recalled)]
        return MetricResult(dict(zip(self.names, shares, strict=True)), {self.names[0]: precise})


class DensityCoverage(FeatureMetric):
    """density: the number of real balls that contain a generated picture, over k; coverage: the share of real balls
    that contain a generated picture (Naeem et al. 2020, arXiv:2002.09797). More robust to real outliers than precision
    and recall. suffix: ends the column names."""

    def __init__(self, extractor: Extractor, layer: str = "pool", k: int = 5, suffix: str = "") -> None:
        super().__init__(extractor, layer)
        self.k, self.names = check_k(k), (f"density{suffix}", f"coverage{suffix}")
        self.headlines = dict.fromkeys(self.names, True)

    def compute_scores(self) -> MetricResult:
        generated, real = self.feature_pair(self.k + 1, f"k={self.k}")
        radius_real = kth_neighbour(real, self.k)
        density, covered = [], torch.zeros_like(radius_real, dtype=torch.bool)
        for block in squared_distances(generated, real):
            inside = block < radius_real
            density.append(inside.sum(1).double() / self.k)
            covered |= inside.any(0)
        parts = torch.cat(density)
        scores = (float(parts.mean()), float(covered.double().mean()))
        return MetricResult(dict(zip(self.names, scores, strict=True)), {self.names[0]: parts})


def check_k(k: int) -> int:
    """Returns k. Raises ValueError if k < 1."""
    if k < 1:
        raise ValueError(f"k={k} must be at least 1: a ball's radius is the distance to the k-th nearest neighbour")
    return k
