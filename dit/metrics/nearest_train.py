"""Memorisation: the distance of generated pictures to their nearest training picture."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dit.metrics.base import FeatureMetric, MetricResult
from dit.metrics.extractors import Extractor
from dit.metrics.neighbours import kth_neighbour, squared_distances

QUANTILE = 0.01
RATIO = 1 / 3  # of the distances to the nearest and to the second nearest picture of a subject
MAX_QUERIES = 10_000  # training pictures that the quantile is estimated from
SAME = 1e-4  # distance of a picture to itself in another batch, by float32 rounding


class NearestTrain(FeatureMetric):
    """The distance of generated pictures to the given training pictures, between unit feature vectors, in [0, 2].

    NAME: the mean distance of a generated picture to its nearest training picture; NAME_median: the median.
    NAME_copies: the share of generated pictures below a threshold, the 1 % quantile of the distances of training
    pictures to their nearest other training picture. New pictures of the training distribution give 1 %; a much larger
    share is memorisation. If more than 1 % of the training pictures have a duplicate, only exact copies count.

    split: train, or subject: the few pictures that a model is fine-tuned on, of which there is no quantile. Then a copy
    is a picture that is at most a third as far from its nearest as from its second nearest picture of the subject.
    Pictures of the subject that are nearly equal hide copies of each other.
    """

    biased = False

    def __init__(self, name: str, extractor: Extractor, layer: str = "pool", split: str = "train") -> None:
        super().__init__(extractor, layer)
        if split not in ("train", "subject"):
            raise ValueError(f"{name}.split={split} must be train or subject")
        self.name, self.headlines, self.reference_split = name, {f"{name}_copies": False}, split
        self._threshold: tuple[Tensor, float] | None = None

    def copy_threshold(self, real: Tensor) -> float:
        """Returns the 1 % quantile of nearest-neighbour distances of training features (M, D)."""
        if self._threshold is None or self._threshold[0] is not real:
            near = kth_neighbour(F.normalize(real), 1, step=-(-len(real) // MAX_QUERIES)).sqrt().sort().values
            self._threshold = real, float(near[int(QUANTILE * (len(near) - 1))])
        return self._threshold[1]

    def compute_scores(self) -> MetricResult:
        generated, real = self.feature_pair(1, "a nearest picture")
        if len(real) < 2:
            raise ValueError(
                f"{self.name} compares with distances between training pictures, but has {len(real)}; give at least 2"
            )
        blocks = squared_distances(F.normalize(generated), F.normalize(real))
        nearest = torch.cat([block.topk(2, largest=False).values for block in blocks]).sqrt()  # (N, 2), ascending
        distances = nearest[:, 0]
        if self.reference_split == "subject":
            limits = RATIO * nearest[:, 1]
        else:
            limits = torch.full_like(distances, self.copy_threshold(real))
        copies = distances <= limits.clamp(min=SAME)
        scores = {
            self.name: float(distances.mean()),
            f"{self.name}_median": float(distances.quantile(0.5)),
            f"{self.name}_copies": float(copies.double().mean()),
        }
        return MetricResult(scores, {self.name: distances, f"{self.name}_copies": copies})
