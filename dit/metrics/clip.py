"""CLIP score: cosine similarity of pictures and their prompts in an open_clip model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from dit.metrics.base import ImageMetric, MetricResult
from dit.metrics.extractors import OpenClip


class ClipScore(ImageMetric):
    """100 times the mean cosine of picture and prompt, in the column `name`: the scale of torchmetrics, not clamped.

    hessel: also NAME_hessel, the mean of 2.5 max(cos, 0) (Hessel et al. 2021, arXiv:2104.08718). prefix: text before
    every prompt; Hessel et al. use "A photo depicts ". Raises ValueError if a picture has no prompt.
    """

    def __init__(self, name: str, extractor: OpenClip, prefix: str = "", hessel: bool = False) -> None:
        super().__init__()
        self.name, self.extractor, self.prefix, self.hessel = name, extractor, prefix, hessel
        self.headlines = {name: True}
        self.add_state("cosines", default=[], dist_reduce_fx="cat")

    def update_samples(self, images: Tensor, prompts: Sequence[str]) -> None:
        if not all(prompts):
            raise ValueError(f"{self.name}: some pictures have no prompt; give one for each picture")
        pictures = F.normalize(self.extractor(images)["pool"].to(self.device).double())
        distinct = sorted(set(prompts))
        features = self.extractor.text_features([self.prefix + text for text in distinct])
        texts = F.normalize(features.to(self.device).double())
        self.keep("cosines", (pictures * texts[[distinct.index(p) for p in prompts]]).sum(1))

    def compute_scores(self) -> MetricResult:
        cosines = self.kept("cosines")
        each = {self.name: 100 * cosines}
        if self.hessel:
            each[f"{self.name}_hessel"] = 2.5 * cosines.clamp(min=0)
        return MetricResult({name: float(values.mean()) for name, values in each.items()}, each)
