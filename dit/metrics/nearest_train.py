"""Are made pictures new, or copies of what was trained on?"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dit.metrics.base import FeatureMetric, MetricResult
from dit.metrics.extractors import Extractor
from dit.metrics.neighbours import kth_neighbour, squared_distances

QUANTILE = 0.01
ASKED = 10_000  # how many training pictures tell what is near: more cost more, and move a quantile no further
SAME = 1e-4  # what a picture differs from itself by in another batch, by the rounding of float32


class NearestTrain(FeatureMetric):
    """How near made pictures come to the training pictures that are shown, between features of length 1 (0 is the same
    direction, 2 the opposite).

    NAME: the mean distance of a made picture to its nearest training picture; NAME_median: the median. NAME_copies: the
    share of made pictures that are as near as the nearest hundredth of training pictures are to another one of them. Of
    fresh pictures from the training distribution 1 % would be so, and a share far above it is memory; where more than a
    hundredth of the training pictures have a twin, only pictures without any difference count.
    """

    reference_split = "train"
    biased = False

    def __init__(self, name: str, extractor: Extractor, layer: str = "pool") -> None:
        super().__init__(extractor, layer)
        self.name, self.headlines = name, {f"{name}_copies": False}
        self._usual: tuple[Tensor, float] | None = None

    def usual(self, real: Tensor) -> float:
        """The distance that a hundredth of training pictures (M, D) have a neighbour within."""
        if self._usual is None or self._usual[0] is not real:
            near = kth_neighbour(F.normalize(real), 1, step=-(-len(real) // ASKED)).sqrt().sort().values
            self._usual = real, float(near[int(QUANTILE * (len(near) - 1))])
        return self._usual[1]

    def compute_scores(self) -> MetricResult:
        made, real = self.both(1, "a nearest picture")
        if len(real) < 2:
            raise ValueError(
                f"{self.name} measures nearness by that of training pictures to each other: show at least 2"
            )
        blocks = squared_distances(F.normalize(made), F.normalize(real))
        distances = torch.cat([block.amin(1) for block in blocks]).sqrt()
        copies = distances <= max(self.usual(real), SAME)
        scores = {
            self.name: float(distances.mean()),
            f"{self.name}_median": float(distances.quantile(0.5)),
            f"{self.name}_copies": float(copies.double().mean()),
        }
        return MetricResult(scores, {self.name: distances, f"{self.name}_copies": copies})
