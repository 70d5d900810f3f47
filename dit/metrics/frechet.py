"""The Fréchet distance between Gaussians fitted to features of real and of made pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dit.metrics.base import ImageMetric
from dit.metrics.extractors import Extractor


class Moments:
    """Count, sum and outer product of feature vectors, in float64."""

    def __init__(self, count: Tensor, total: Tensor, outer: Tensor) -> None:
        self.count, self.total, self.outer = count, total, outer

    @classmethod
    def zero(cls, dim: int) -> Moments:
        return cls(*(torch.zeros(shape, dtype=torch.float64) for shape in ((), (dim,), (dim, dim))))

    def add(self, features: Tensor) -> None:
        """features: (N, D)."""
        wide = features.to(self.total)  # its device and its float64
        self.count += len(wide)
        self.total += wide.sum(0)
        self.outer += wide.T @ wide

    def gaussian(self) -> tuple[Tensor, Tensor]:
        """Mean (D,) and unbiased covariance (D, D). Raises ValueError below two samples."""
        if self.count < 2:
            raise ValueError(f"a Fréchet distance needs at least 2 pictures on each side, here are {int(self.count)}")
        mean = self.total / self.count
        return mean, (self.outer - self.count * torch.outer(mean, mean)) / (self.count - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) (Heusel et al. 2017, arXiv:1706.08500, eq. 6).

    The trace of the root comes from two symmetric eigenvalue problems: with S1 = Q Q', the eigenvalues of S1 S2 are
    those of Q' S2 Q.
    """
    (mean1, cov1), (mean2, cov2) = a.gaussian(), b.gaussian()
    values, vectors = torch.linalg.eigh(cov1)
    q = vectors * values.clamp(min=0).sqrt()
    root = torch.linalg.eigvalsh(q.T @ cov2 @ q).clamp(min=0).sqrt().sum()
    return float((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * root)


class FrechetDistance(ImageMetric):
    """One column, called `name`; only torch-fidelity's Inception features earn the name fid."""

    higher_is_better = False
    count: Tensor
    total: Tensor
    outer: Tensor

    def __init__(self, name: str, extractor: Extractor) -> None:
        super().__init__()
        self.label, self.extractor = name, extractor
        zero = Moments.zero(extractor.dim)
        for state in ("count", "total", "outer"):
            self.add_state(state, default=getattr(zero, state), dist_reduce_fx="sum")
        self.real = Moments.zero(extractor.dim)

    def reference(self, images: Tensor, captions: Sequence[str]) -> None:
        self.real = Moments(*(torch.zeros_like(state) for state in (self.count, self.total, self.outer)))
        self.real.add(self.extractor(images))

    def update(self, images: Tensor, prompts: Sequence[str]) -> None:
        Moments(self.count, self.total, self.outer).add(self.extractor(images))

    def compute(self) -> dict[str, float]:
        return {self.label: frechet_distance(self.real, Moments(self.count, self.total, self.outer))}
