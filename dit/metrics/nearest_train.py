"""Are made pictures new, or copies of what was trained on?"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from dit.metrics.base import FeatureMetric, Judgement
from dit.metrics.extractors import Extractor
from dit.metrics.neighbours import kth_neighbour, squared_distances

QUANTILE = 0.01
SAME = 1e-4  # what a picture differs from itself by in another batch, by the rounding of float32


class NearestTrain(FeatureMetric):
    """How near made pictures come to the training pictures that are shown, between features of length 1 (0 is the same
    direction, 2 the opposite).

    NAME: the mean distance of a made picture to its nearest training picture; NAME_median: the median. NAME_copies: the
    share of made pictures that are as near as the nearest hundredth of training pictures are to another one of them. Of
    fresh pictures from the training distribution 1 % would be so, and a share far above it is memory; where more than a
    hundredth of the training pictures have a twin, only pictures without any difference count.
    """

    wants = "train"
    biased = False

    def __init__(self, name: str, extractor: Extractor, layer: str = "pool") -> None:
        super().__init__(extractor, layer)
        self.name, self.headlines = name, {f"{name}_copies": False}

    def judge(self) -> Judgement:
        made, real = self.both(1, "a nearest picture")
        if len(real) < 2:
            raise ValueError(
                f"{self.name} measures nearness by that of training pictures to each other: show at least 2"
            )
        made, real = (F.normalize(features.double()) for features in (made, real))
        distances = torch.cat([block.amin(1) for block in squared_distances(made, real)]).sqrt()
        usual = kth_neighbour(real, 1).sqrt().sort().values
        copies = distances <= usual[int(QUANTILE * (len(usual) - 1))].clamp(min=SAME)
        scores = {
            self.name: float(distances.mean()),
            f"{self.name}_median": float(distances.quantile(0.5)),
            f"{self.name}_copies": float(copies.double().mean()),
        }
        return Judgement(scores, {self.name: distances, f"{self.name}_copies": copies})
