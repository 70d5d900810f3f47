"""All feature metrics on one extractor, for a few dozen pictures; the extractor returns the pixels."""

import torch

from dit.metrics.extractors import Extractor
from dit.metrics.frechet import FrechetDistance
from dit.metrics.inception_score import InceptionScore
from dit.metrics.kernel import CMMD, KernelDistance
from dit.metrics.manifold import DensityCoverage, PrecisionRecall
from dit.metrics.nearest_train import NearestTrain

DIM = 12


class Pixels(Extractor):
    """The features are the pixels of pictures (3, 2, 2), from -2 to 2."""

    def __init__(self):
        super().__init__(slice_size=1000)
        self.dims, self.protocol = {"pool": DIM}, {"network": "none"}

    def extract(self, images):
        return {"pool": pictures_to_features(images)}


def pictures_to_features(images):
    return images.flatten(1).float() / 64 - 2


def random_pictures(count, seed, spread=1.0, shift=0.0):
    """(count, 3, 2, 2) uint8 pictures whose pixels are normal and correlated."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.eye(DIM) + 0.3 * torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(0))
    x = spread * torch.randn(count, DIM, generator=draw) @ mix + shift
    return (128 + 24 * x).round().clamp(0, 255).to(torch.uint8).view(count, 3, 2, 2)


def every_metric(extractor):
    return {
        "fd": FrechetDistance("fd", extractor),
        "kd": KernelDistance("kd", extractor),
        "kd_subsets": KernelDistance("kd_subsets", extractor, subsets=20, subset_size=16),
        "cmmd": CMMD("cmmd", extractor),
        "score": InceptionScore("score", extractor, "pool", splits=1),
        "precision_recall": PrecisionRecall(extractor),
        "density_coverage": DensityCoverage(extractor),
        "nearest": NearestTrain("nearest", extractor),
    }
