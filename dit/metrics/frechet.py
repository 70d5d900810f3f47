"""The Fréchet distance between Gaussians fitted to features of real and of generated pictures."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from dit.metrics.base import FeatureMetric, MetricResult
from dit.metrics.extractors import Extractor


class Moments:
    """Count, sum and sum of outer products of feature vectors, in float64."""

    def __init__(self, count: Tensor, total: Tensor, outer: Tensor) -> None:
        self.count, self.total, self.outer = count, total, outer

    @classmethod
    def zero(cls, dim: int) -> Moments:
        return cls(*(torch.zeros(shape, dtype=torch.float64) for shape in ((), (dim,), (dim, dim))))

    @classmethod
    def of_gaussian(cls, mean: Tensor, cov: Tensor, count: int = 2) -> Moments:
        """Returns the moments of `count` samples with this mean (D,) and unbiased covariance (D, D)."""
        n, mean, cov = torch.tensor(float(count), dtype=torch.float64), mean.double(), cov.double()
        return cls(n, n * mean, (n - 1) * cov + n * torch.outer(mean, mean))

    def add(self, features: Tensor) -> None:
        """Adds features (N, D)."""
        wide = features.to(self.total)  # same device and float64
        self.count += len(wide)
        self.total += wide.sum(0)
        self.outer += wide.T @ wide

    def gaussian(self) -> tuple[Tensor, Tensor]:
        """Returns mean (D,) and unbiased covariance (D, D). Raises ValueError for fewer than two samples."""
        if self.count < 2:
            raise ValueError(f"a Fréchet distance needs at least 2 pictures on each side, not {int(self.count)}")
        mean = self.total / self.count
        return mean, (self.outer - self.count * torch.outer(mean, mean)) / (self.count - 1)


def root_of(cov: Tensor) -> Tensor:
    """Returns Q (D, R) with Q Q' = cov, a symmetric matrix of rank R, positive semidefinite up to rounding."""
    lower, failed = torch.linalg.cholesky_ex(cov)
    if not failed:
        return lower
    values, vectors = torch.linalg.eigh(cov)
    positive = values > values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    positive[-1] = True  # the largest eigenvalue is kept if all are zero
    return vectors[:, positive] * values[positive].clamp(min=0).sqrt()


def frechet_distance(real: Moments, generated: Moments) -> float:
    """Returns |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) (Heusel et al. 2017, arXiv:1706.08500, eq. 6)."""
    (mean1, cov1), (mean2, cov2) = real.gaussian(), generated.gaussian()
    trace_of_root = eigenvalues_of_product(cov1, cov2).clamp(min=0).sqrt().sum()
    return float((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * trace_of_root)


def eigenvalues_of_product(a: Tensor, b: Tensor) -> Tensor:
    """Returns the nonzero eigenvalues of A B, for covariances (D, D).

    With A = Q Q' they are those of the symmetric Q' B Q; if A has full rank, LAPACK computes them in half the time."""
    if a.device.type == "cpu":
        with suppress(np.linalg.LinAlgError):
            options = {"type": 2, "driver": "gv", "eigvals_only": True, "check_finite": False}
            return torch.from_numpy(scipy.linalg.eigh(b.numpy(), a.numpy(), **options))
    q = root_of(a)
    return torch.linalg.eigvalsh(q.T @ b @ q)


def distance_and_influences(real: Moments, root: Tensor, generated: Moments, features: Tensor) -> tuple[float, Tensor]:
    """Returns `frechet_distance`, and the influence (N,) float64 of each generated picture on it, with mean zero.

    root: `root_of` the covariance of the real pictures. features: (N, D) of the generated pictures. If N < D, the
    eigenvalues of Q' S2 Q are those of the smaller A A', with A = (x - m2) Q / (N - 1)^(1/2).

    To first order (the delta method), the distance of N new pictures differs by the mean of their influences. With the
    derivative by S2, G = 1 - Q (Q' S2 Q)^(-1/2) Q', the influence of picture x is 2 (m2 - m1) (x - m2) +
    (x - m2)' G (x - m2) - tr(G S2).
    """
    (mean1, cov1), (mean2, cov2) = real.gaussian(), generated.gaussian()
    x = features.to(mean2) - mean2
    if len(x) < len(mean2):
        a = x @ root / (generated.count - 1).sqrt()
        values, vectors = torch.linalg.eigh(a @ a.T)
    else:
        values, vectors = torch.linalg.eigh(root.T @ cov2 @ root)
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * values.clamp(min=0).sqrt().sum()
    positive = values > values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    values, vectors = values[positive], vectors[:, positive]
    if len(x) < len(mean2):
        vectors = a.T @ vectors * values**-0.5
    quadratic = x.square().sum(1) - (x @ (root @ vectors * values**-0.25)).square().sum(1)
    return float(distance), 2 * x @ (mean2 - mean1) + quadratic - quadratic.mean()


class FrechetDistance(FeatureMetric):
    """The Fréchet distance, in the column `name`; use the name fid only for torch-fidelity's Inception features.

    parts: keep the features of every picture, which intervals and comparisons need; otherwise only sums are kept, and
    the distance takes a third of the time.
    """

    count: Tensor
    total: Tensor
    outer: Tensor

    def __init__(self, name: str, extractor: Extractor, layer: str = "pool", parts: bool = True) -> None:
        super().__init__(extractor, layer)
        self.name, self.headlines, self.parts = name, {name: False}, parts
        zero = Moments.zero(self.dim)
        for state in ("count", "total", "outer"):
            self.add_state(state, default=getattr(zero, state), dist_reduce_fx="sum")
        self.reference = Moments.zero(self.dim)
        self._root: Tensor | None = None  # of the reference's covariance, cached: it takes half of the time

    def update_samples(self, images: Tensor, prompts: object) -> None:
        features = self.extract(images)
        if self.parts:
            self.keep("features", features)
        Moments(self.count, self.total, self.outer).add(features)

    def update_real(self, images: Tensor) -> None:
        """Adds to sums only, so that the memory does not grow with the number of real pictures."""
        if not self.reference.count:
            self.reference = Moments(*(torch.zeros_like(state) for state in (self.count, self.total, self.outer)))
        self.reference.add(self.extract(images))
        self._root = None

    @property
    def reference_key(self) -> str | None:
        return f"moments of {self.extractor.fingerprint} {self.layer}"

    def reference_state(self) -> dict[str, Tensor]:
        return vars(self.reference)

    def load_reference(self, state: Mapping[str, Tensor]) -> None:
        self._reference_is_synced, self._root = True, None
        self.reference = Moments(*(state[name].to(self.total) for name in ("count", "total", "outer")))
        self.reference_count = int(self.reference.count)

    def reset_reference(self) -> None:
        super().reset_reference()
        self.reference, self._root = Moments.zero(self.dim), None

    def compute_scores(self) -> MetricResult:
        if not self.reference.count:
            raise ValueError(f"{self.name} needs real pictures, and has none")
        generated = Moments(self.count, self.total, self.outer)
        if not self.parts:
            return MetricResult({self.name: frechet_distance(self.reference, generated)}, {})
        if self._root is None:
            self._root = root_of(self.reference.gaussian()[1])
        distance, influences = distance_and_influences(self.reference, self._root, generated, self.sample_features())
        return MetricResult({self.name: distance}, {self.name: distance + influences})
