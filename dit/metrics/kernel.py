"""Kernel distances (maximum mean discrepancies, MMD) between the features of real and of made pictures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dit.metrics.base import FeatureMetric, MetricResult
from dit.metrics.extractors import Extractor

Kernel = Callable[[Tensor], Tensor]  # inner products -> kernel values, place by place
ROWS = 1024  # of a block of the kernel matrix, which is never whole in memory


def row_means(a: Tensor, b: Tensor, kernel: Kernel) -> Tensor:
    """(N,) mean kernel of each of a (N, D) with all of b (M, D)."""
    sums = [torch.stack([kernel(rows @ others.T).sum(1) for others in b.split(ROWS)]).sum(0) for rows in a.split(ROWS)]
    return torch.cat(sums) / len(b)


def without_self(means: Tensor, a: Tensor, kernel: Kernel) -> Tensor:
    """(N,) row means of a with itself, as they are without the diagonal."""
    return (means * len(a) - kernel(a.square().sum(1))) / (len(a) - 1)


def squared_mmd(made: Tensor, real: Tensor, kernel: Kernel, unbiased: bool) -> tuple[float, Tensor]:
    """The squared MMD of (N, D) and (M, D) features (Gretton et al. 2012, JMLR 13, eq. 3; unbiased, without the
    diagonals; or eq. 5, with them), and (N,) how much each made picture moves it to first order, with mean zero."""
    within, across = row_means(made, made, kernel), row_means(made, real, kernel)
    among = row_means(real, real, kernel)
    if unbiased:
        within, among = without_self(within, made, kernel), without_self(among, real, kernel)
    moved = 2 * (within - across)
    return float(within.mean() + among.mean() - 2 * across.mean()), moved - moved.mean()


def cubic(products: Tensor, dim: int) -> Tensor:
    """(x y / dim + 1)^3, KID's kernel."""
    return (products / dim + 1) ** 3


class KernelDistance(FeatureMetric):
    """The squared MMD of the cubic kernel, unbiased; KID on Inception's features (Binkowski et al. 2018,
    arXiv:1801.01401).

    From `subset_size` pictures on each side upwards: the mean over `subsets` random subsets, which are torch-fidelity's
    own, so that its numbers come out. Below: the estimate from all pictures at once, which the subsets' mean strays
    about by chance, and whose expectation is the same.
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
        made, real = (features.double() for features in self.both(2, "an unbiased estimate"))
        kernel = partial(cubic, dim=self.dim)
        distance, moved = squared_mmd(made, real, kernel, unbiased=True)
        if min(len(made), len(real)) >= self.subset_size:
            distance = self._over_subsets(made, real, kernel)
        return MetricResult({self.name: distance}, {self.name: distance + moved})

    def _over_subsets(self, made: Tensor, real: Tensor, kernel: Kernel) -> float:
        draw, total, size = np.random.RandomState(2020), 0.0, self.subset_size
        for _ in range(self.subsets):
            x, y = (f[torch.from_numpy(draw.choice(len(f), size, replace=False)).to(f.device)] for f in (made, real))
            total += squared_mmd(x, y, kernel, unbiased=True)[0]
        return total / self.subsets


def gaussian_on_sphere(products: Tensor, sigma: float) -> Tensor:
    """exp(-|x - y|^2 / (2 sigma^2)) of vectors of length 1."""
    return ((products - 1) / sigma**2).exp()


class CMMD(FeatureMetric):
    """1000 times the squared MMD, diagonals included, of features of length 1 under a Gaussian kernel of width `sigma`
    (Jayasumana et al. 2024, arXiv:2401.09603); the name is CLIP's ViT-L/14 at 336 alone to bear."""

    def __init__(self, name: str, extractor: Extractor, layer: str = "pool", sigma: float = 10.0) -> None:
        super().__init__(extractor, layer)
        self.name, self.sigma, self.headlines = name, sigma, {name: False}

    def compute_scores(self) -> MetricResult:
        made, real = (F.normalize(features.double()) for features in self.both(1, "a kernel distance"))
        distance, moved = squared_mmd(made, real, partial(gaussian_on_sphere, sigma=self.sigma), unbiased=False)
        return MetricResult({self.name: 1000 * distance}, {self.name: 1000 * (distance + moved)})
