"""Do made pictures lie among the real ones, and are all real ones met? Balls around pictures tell.

Each picture's ball reaches to its k-th nearest neighbour of its own kind.
"""

from __future__ import annotations

import torch

from dit.metrics.base import FeatureMetric, MetricResult
from dit.metrics.extractors import Extractor
from dit.metrics.neighbours import kth_neighbour, squared_distances


class PrecisionRecall(FeatureMetric):
    """precision: the share of made pictures in a ball of a real one; recall: the share of real pictures in a ball of a
    made one (Kynkäänniemi et al. 2019, arXiv:1904.06991). `suffix` ends the columns' names on another network's
    features than Inception's."""

    def __init__(self, extractor: Extractor, layer: str = "pool", k: int = 3, suffix: str = "") -> None:
        super().__init__(extractor, layer)
        self.k, self.names = check_k(k), (f"precision{suffix}", f"recall{suffix}")
        self.headlines = dict.fromkeys(self.names, True)

    def compute_scores(self) -> MetricResult:
        made, real = self.both(self.k + 1, f"k={self.k}")
        around_made, around_real = kth_neighbour(made, self.k), kth_neighbour(real, self.k)
        precise = torch.cat([(block <= around_real).any(1) for block in squared_distances(made, real)])
        recalled = torch.cat([(block <= around_made).any(1) for block in squared_distances(real, made)])
        shares = [float(part.double().mean()) for part in (precise, recalled)]
        return MetricResult(dict(zip(self.names, shares, strict=True)), {self.names[0]: precise})


class DensityCoverage(FeatureMetric):
    """density: how many real pictures' balls a made picture lies in, over k; coverage: the share of real pictures whose
    ball holds a made one (Naeem et al. 2020, arXiv:2002.09797). Outliers among the real pictures sway them less."""

    def __init__(self, extractor: Extractor, layer: str = "pool", k: int = 5, suffix: str = "") -> None:
        super().__init__(extractor, layer)
        self.k, self.names = check_k(k), (f"density{suffix}", f"coverage{suffix}")
        self.headlines = dict.fromkeys(self.names, True)

    def compute_scores(self) -> MetricResult:
        made, real = self.both(self.k + 1, f"k={self.k}")
        around_real = kth_neighbour(real, self.k)
        density, covered = [], torch.zeros_like(around_real, dtype=torch.bool)
        for block in squared_distances(made, real):
            inside = block < around_real
            density.append(inside.sum(1).double() / self.k)
            covered |= inside.any(0)
        parts = torch.cat(density)
        scores = (float(parts.mean()), float(covered.double().mean()))
        return MetricResult(dict(zip(self.names, scores, strict=True)), {self.names[0]: parts})


def check_k(k: int) -> int:
    """Raises ValueError below 1."""
    if k < 1:
        raise ValueError(f"k={k} must be at least 1: the neighbour that a picture's ball reaches to")
    return k
