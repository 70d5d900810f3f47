"""Inception score: confident class predictions per picture, and diverse classes over all pictures."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from dit.metrics.base import FeatureMetric, MetricResult
from dit.metrics.extractors import Extractor


class InceptionScore(FeatureMetric):
    """exp(mean KL(p(y|x) | p(y))), averaged over splits of the pictures (Salimans et al. 2016, arXiv:1606.03498).

    splits: the number of splits, of pictures in the random order of torch-fidelity. split_size: use consecutive splits
    of this many pictures instead; ADM uses 5000.
    """

    reference_split = None

    def __init__(
        self,
        name: str,
        extractor: Extractor,
        layer: str = "logits",
        splits: int = 10,
        split_size: int | None = None,
    ) -> None:
        super().__init__(extractor, layer)
        if splits < 1 or (split_size is not None and split_size < 1):
            raise ValueError(f"{name}.splits={splits} and split_size={split_size} must be at least 1")
        self.name, self.splits, self.split_size = name, splits, split_size
        self.headlines = {name: True}

    def _parts(self, count: int) -> list[Tensor]:
        """Returns the indices of the pictures of each split."""
        if self.split_size is not None:
            return list(torch.arange(count).split(self.split_size))
        order = torch.from_numpy(np.random.RandomState(2020).permutation(count))
        return [order[i * count // self.splits : (i + 1) * count // self.splits] for i in range(self.splits)]

    def compute_scores(self) -> MetricResult:
        logits = self.sample_features().double()
        if self.split_size is None and len(logits) < self.splits:
            raise ValueError(f"{self.name} of {len(logits)} pictures: splits={self.splits} needs at least as many")
        scores, influences = [], torch.empty(len(logits), dtype=torch.float64, device=logits.device)
        for part in self._parts(len(logits)):
            rows = part.to(logits.device)
            log_p = logits[rows].log_softmax(1)
            log_mean = log_p.logsumexp(0) - math.log(len(rows))  # finite even if a class has probability 0
            divergence = (log_p.exp() * (log_p - log_mean)).sum(1)
            scores.append(divergence.mean().exp())
            influences[rows] = scores[-1] * (divergence - divergence.mean())
        score = torch.stack(scores).mean()
        return MetricResult({self.name: float(score)}, {self.name: score + influences})
