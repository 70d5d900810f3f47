"""Prior drift: the distance of a fine-tuned model's pictures to those of the model before fine-tuning."""

from __future__ import annotations

from torch import Tensor

from dit.metrics.base import FeatureMetric, MetricResult
from dit.metrics.extractors import Extractor
from dit.metrics.frechet import Moments, distance_and_influences, root_of


class PriorDrift(FeatureMetric):
    """The Fréchet distance between the pictures of two models of the same prompts and the same noise, in the column
    `name`. It is 0 if fine-tuning has changed no picture.

    Picture i of one model belongs to picture i of the other. The contribution of a pair is the sum of the influences
    of its two pictures, so that the interval is that of the distance over new pairs.
    """

    reference_split = "base"

    def __init__(self, name: str, extractor: Extractor, layer: str = "pool") -> None:
        super().__init__(extractor, layer)
        self.name, self.headlines = name, {name: False}

    def take_features(self) -> Tensor:
        """Returns the features of the pictures of all ranks, (N, D), in their order, and resets the metric."""
        with self.sync_context():
            features = self.sample_features()
        self.reset()
        return features

    def compute_scores(self) -> MetricResult:
        generated, base = self.feature_pair(2, "a Fréchet distance")
        if len(generated) != len(base):
            raise ValueError(f"{self.name}: {len(generated)} pictures of one model and {len(base)} of the other")
        moments = [Moments.zero(self.dim), Moments.zero(self.dim)]
        for part, features in zip(moments, (generated, base), strict=True):
            part.add(features.cpu())
        roots = [root_of(part.gaussian()[1]) for part in moments]
        distance, influences = distance_and_influences(moments[1], roots[1], moments[0], generated.cpu())
        _, of_base = distance_and_influences(moments[0], roots[0], moments[1], base.cpu())
        distance = max(distance, 0.0)  # rounding of equal pictures
        return MetricResult({self.name: distance}, {self.name: distance + influences + of_base})
