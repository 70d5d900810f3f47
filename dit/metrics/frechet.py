"""The Fréchet distance between Gaussians fitted to features of real and of made pictures."""

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
    """Count, sum and outer product of feature vectors, in float64."""

    def __init__(self, count: Tensor, total: Tensor, outer: Tensor) -> None:
        self.count, self.total, self.outer = count, total, outer

    @classmethod
    def zero(cls, dim: int) -> Moments:
        return cls(*(torch.zeros(shape, dtype=torch.float64) for shape in ((), (dim,), (dim, dim))))

    @classmethod
    def of_gaussian(cls, mean: Tensor, cov: Tensor, count: int = 2) -> Moments:
        """Those of `count` samples with this mean (D,) and unbiased covariance (D, D)."""
        n, mean, cov = torch.tensor(float(count), dtype=torch.float64), mean.double(), cov.double()
        return cls(n, n * mean, (n - 1) * cov + n * torch.outer(mean, mean))

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


def root_of(cov: Tensor) -> Tensor:
    """Q (D, R) with Q Q' = cov, which is symmetric and has no negative eigenvalues but by rounding. R: its rank."""
    lower, failed = torch.linalg.cholesky_ex(cov)
    if not failed:
        return lower
    values, vectors = torch.linalg.eigh(cov)
    known = values > values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    known[-1] = True  # the largest, where all are zero
    return vectors[:, known] * values[known].clamp(min=0).sqrt()


def frechet_distance(real: Moments, made: Moments) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) (Heusel et al. 2017, arXiv:1706.08500, eq. 6)."""
    (mean1, cov1), (mean2, cov2) = real.gaussian(), made.gaussian()
    trace_of_root = eigenvalues_of_product(cov1, cov2).clamp(min=0).sqrt().sum()
    return float((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * trace_of_root)


def eigenvalues_of_product(a: Tensor, b: Tensor) -> Tensor:
    """Those of A B that are not 0, for covariances (D, D): with A = Q Q' they are those of the symmetric Q' B Q, which
    LAPACK forms in half the work where A has full rank."""
    if a.device.type == "cpu":
        with suppress(np.linalg.LinAlgError):
            how = {"type": 2, "driver": "gv", "eigvals_only": True, "check_finite": False}
            return torch.from_numpy(scipy.linalg.eigh(b.numpy(), a.numpy(), **how))
    q = root_of(a)
    return torch.linalg.eigvalsh(q.T @ b @ q)


def distance_and_influences(real: Moments, root: Tensor, made: Moments, features: Tensor) -> tuple[float, Tensor]:
    """`frechet_distance`, and (N,) float64 how much each made picture moves it, with mean zero. root: that of the real
    pictures' covariance; features: (N, D) of the made pictures.

    Where N < D the eigenvalues of Q' S2 Q come from the smaller A A', with A = (x - m2) Q / (N - 1)^(1/2).

    To first order (the delta method) the distance of other N pictures is off by the mean of their influences: with G =
    1 - Q (Q' S2 Q)^(-1/2) Q', the derivative by S2, picture x counts 2 (m2 - m1) (x - m2) + (x - m2)' G (x - m2) -
    tr(G S2).
    """
    (mean1, cov1), (mean2, cov2) = real.gaussian(), made.gaussian()
    x = features.to(mean2) - mean2
    if len(x) < len(mean2):
        a = x @ root / (made.count - 1).sqrt()
        values, vectors = torch.linalg.eigh(a @ a.T)
    else:
        values, vectors = torch.linalg.eigh(root.T @ cov2 @ root)
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * values.clamp(min=0).sqrt().sum()
    known = values > values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    values, vectors = values[known], vectors[:, known]
    if len(x) < len(mean2):
        vectors = a.T @ vectors * values**-0.5
    bent = x.square().sum(1) - (x @ (root @ vectors * values**-0.25)).square().sum(1)
    return float(distance), 2 * x @ (mean2 - mean1) + bent - bent.mean()


class FrechetDistance(FeatureMetric):
    """One column, called `name`; only torch-fidelity's Inception features earn the name fid.

    parts: keep every picture's features, of which intervals and comparisons are made; without, sums alone are kept, and
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
        self._root: Tensor | None = None  # of the reference's covariance, which takes as long as all the rest

    def update_samples(self, images: Tensor, prompts: object) -> None:
        features = self.extract(images)
        if self.parts:
            self.keep("features", features)
        Moments(self.count, self.total, self.outer).add(features)

    def update_real(self, images: Tensor) -> None:
        """Sums alone, so that a million real pictures cost no more memory than a hundred."""
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
            raise ValueError(f"{self.name} measures against real pictures, and none were shown")
        made = Moments(self.count, self.total, self.outer)
        if not self.parts:
            return MetricResult({self.name: frechet_distance(self.reference, made)}, {})
        if self._root is None:
            self._root = root_of(self.reference.gaussian()[1])
        distance, influences = distance_and_influences(self.reference, self._root, made, self.sample_features())
        return MetricResult({self.name: distance}, {self.name: distance + influences})
