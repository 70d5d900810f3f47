"""Kernel distances (maximum mean discrepancies, MMD) between features of real and of generated pictures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dit.metrics.base import FeatureMetric, MetricResult
from dit.metrics.extractors import Extractor

Kernel = Callable[[Tensor], Tensor]  # inner products -> kernel values, elementwise
ROWS = 1024  # per block of the kernel matrix, which is never held as a whole


def row_means(a: Tensor, b: Tensor, kernel: Kernel) -> Tensor:
    """Returns (N,) the mean kernel of each row of a (N, D) with all rows of b (M, D)."""
    sums = [torch.stack([kernel(rows @ cols.T).sum(1) for cols in b.split(ROWS)]).sum(0) for rows in a.split(ROWS)]
    return torch.cat(sums) / len(b)


def without_diagonal(means: Tensor, a: Tensor, kernel: Kernel) -> Tensor:
    """Returns (N,) the row means of the kernel matrix of a with itself, with the diagonal excluded."""
    return (means * len(a) - kernel(a.square().sum(1))) / (len(a) - 1)


def squared_mmd(generated: Tensor, real: Tensor, kernel: Kernel, unbiased: bool) -> tuple[float, Tensor]:
    """Returns the squared MMD of features (N, D) and (M, D), and the influence (N,) of each generated picture on it, to
    first order and with mean zero.

    Gretton et al. 2012, JMLR 13: eq. 3 (unbiased, without the diagonals) or eq. 5 (with them)."""
    within, across = row_means(generated, generated, kernel), row_means(generated, real, kernel)
    among = row_means(real, real, kernel)
    if unbiased:
        within, among = without_diagonal(within, generated, kernel), without_diagonal(among, real, kernel)
    influences = 2 * (within - across)
    return float(within.mean() + among.mean() - 2 * across.mean()), influences - influences.mean()


def cubic(products: Tensor, dim: int) -> Tensor:
    """Returns (x y / dim + 1)^3, the kernel of KID."""
    return (products / dim + 1) ** 3


class KernelDistance(FeatureMetric):
    """The unbiased squared MMD with the cubic kernel: KID on Inception features (Binkowski et al. 2018,
    arXiv:1801.01401).

    With `subset_size` pictures or more on each side: the mean over `subsets` random subsets, the same as in
    torch-fidelity. With fewer: the estimate from all pictures at once, which has the same expectation.
    """

    biased = False

    def __init__(
        self, name: str, extractor: Extractor, layer: str = "pool", subsets: int = 100, subset_size: int = 1000
    ) -> None:
        super().__init__(extractor, layer)
        if subset_size < 2 or subsets < 1:
            raise ValueError(f"{name}.subset_size={subset_size} must be at least 2 and subsets={subsets} at least 1")
        self.name, self.subsets, self.subset_size = name, subsets, subset_size
        self.headlines = {name: False}

    def compute_scores(self) -> MetricResult:
        generated, real = (features.double() for features in self.feature_pair(2, "an unbiased estimate"))
        kernel = partial(cubic, dim=self.dim)
        distance, influences = squared_mmd(generated, real, kernel, unbiased=True)
        if min(len(generated), len(real)) >= self.subset_size:
            distance = self._over_subsets(generated, real, kernel)
        return MetricResult({self.name: distance}, {self.name: distance + influences})

    def _over_subsets(self, generated: Tensor, real: Tensor, kernel: Kernel) -> float:
        draw, total, size, sets = np.random.RandomState(2020), 0.0, self.subset_size, (generated, real)
        for _ in range(self.subsets):
            x, y = (f[torch.from_numpy(draw.choice(len(f), size, replace=False)).to(f.device)] for f in sets)
            total += squared_mmd(x, y, kernel, unbiased=True)[0]
        return total / self.subsets


def gaussian_on_sphere(products: Tensor, sigma: float) -> Tensor:
    """Returns exp(-|x - y|^2 / (2 sigma^2)) for unit vectors, from their inner products."""
    return ((products - 1) / sigma**2).exp()


class CMMD(FeatureMetric):
    """1000 times the biased squared MMD of unit feature vectors with a Gaussian kernel of width `sigma` (Jayasumana et
    al. 2024, arXiv:2401.09603); use the name cmmd only for CLIP ViT-L/14 at 336 pixels."""

    def __init__(self, name: str, extractor: Extractor, layer: str = "pool", sigma: float = 10.0) -> None:
        super().__init__(extractor, layer)
        self.name, self.sigma, self.headlines = name, sigma, {name: False}

    def compute_scores(self) -> MetricResult:
        generated, real = (F.normalize(features.double()) for features in self.feature_pair(1, "a kernel distance"))
        distance, influences = squared_mmd(
            generated, real, partial(gaussian_on_sphere, sigma=self.sigma), unbiased=False
        )
        return MetricResult({self.name: 1000 * distance}, {self.name: 1000 * (distance + influences)})
