"""The Fréchet distance between Gaussians fitted to features of real and of made pictures."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dit.metrics.base import FeatureMetric, Judgement
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
    """Q (D, D) with Q Q' = cov, which is symmetric and has no negative eigenvalues but by rounding."""
    values, vectors = torch.linalg.eigh(cov)
    return vectors * values.clamp(min=0).sqrt()


def frechet_distance(real: Moments, made: Moments, made_features: Tensor | None = None) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) (Heusel et al. 2017, arXiv:1706.08500, eq. 6).

    The trace of the root comes from symmetric eigenvalue problems: with S1 = Q Q', the eigenvalues of S1 S2 are those
    of Q' S2 Q. Where `made_features` (N, D) are fewer than D, S2 = X' X with N rows in X, and they are those of the
    smaller X S1 X'.
    """
    (mean1, cov1), (mean2, cov2) = real.gaussian(), made.gaussian()
    if made_features is not None and len(made_features) < len(mean1):
        x = (made_features.to(mean2) - mean2) / (made.count - 1).sqrt()
        product = x @ cov1 @ x.T
    else:
        q = root_of(cov1)
        product = q.T @ cov2 @ q
    root = torch.linalg.eigvalsh(product).clamp(min=0).sqrt().sum()
    return float((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * root)


def influence(real: Moments, made: Moments, features: Tensor) -> Tensor:
    """(N,) float64: how much each made picture, features (N, D), moves the distance, with mean zero.

    To first order (the delta method) the distance of other N pictures is off by the mean of their influences: with G =
    1 - Q (Q' S2 Q)^(-1/2) Q', the derivative by S2, picture x counts 2 (m2 - m1) (x - m2) + (x - m2)' G (x - m2) -
    tr(G S2), S1 = Q Q'.
    """
    (mean1, cov1), (mean2, cov2) = real.gaussian(), made.gaussian()
    q = root_of(cov1)
    values, vectors = torch.linalg.eigh(q.T @ cov2 @ q)
    kept = values > values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    half = (q @ vectors[:, kept]) * values[kept] ** -0.25
    x = features.to(mean2) - mean2
    bent = x.square().sum(1) - (x @ half).square().sum(1)
    return 2 * x @ (mean2 - mean1) + bent - bent.mean()


class FrechetDistance(FeatureMetric):
    """One column, called `name`; only torch-fidelity's Inception features earn the name fid."""

    count: Tensor
    total: Tensor
    outer: Tensor

    def __init__(self, name: str, extractor: Extractor, layer: str = "pool") -> None:
        super().__init__(extractor, layer)
        self.name, self.headlines = name, {name: False}
        zero = Moments.zero(self.dim)
        for state in ("count", "total", "outer"):
            self.add_state(state, default=getattr(zero, state), dist_reduce_fx="sum")
        self.reference = Moments.zero(self.dim)

    def see(self, images: Tensor, prompts: object) -> None:
        features = self.look(images)
        self.features.append(features)  # type: ignore[union-attr]
        Moments(self.count, self.total, self.outer).add(features)

    def see_real(self, images: Tensor) -> None:
        """Sums alone, so that a million real pictures cost no more memory than a hundred."""
        if not self.reference.count:
            self.reference = Moments(*(torch.zeros_like(state) for state in (self.count, self.total, self.outer)))
        self.reference.add(self.look(images))

    @property
    def reference_key(self) -> str | None:
        return f"moments of {self.extractor.fingerprint} {self.layer}"

    def reference_state(self) -> dict[str, Tensor]:
        return vars(self.reference)

    def load_reference(self, state: Mapping[str, Tensor]) -> None:
        self._reference_is_whole = True
        self.reference = Moments(*(state[name].to(self.total) for name in ("count", "total", "outer")))

    def forget_reference(self) -> None:
        super().forget_reference()
        self.reference = Moments.zero(self.dim)

    def judge(self) -> Judgement:
        if not self.reference.count:
            raise ValueError(f"{self.name} measures against real pictures, and none were shown")
        made, features = Moments(self.count, self.total, self.outer), self.made_features()
        distance = frechet_distance(self.reference, made, features)
        return Judgement({self.name: distance}, {self.name: distance + influence(self.reference, made, features)})
