"""Subject fidelity: the similarity of generated pictures to the few pictures of a subject."""

from __future__ import annotations

from torch.nn import functional as F

from dit.metrics.base import FeatureMetric, MetricResult
from dit.metrics.extractors import Extractor


class SubjectFidelity(FeatureMetric):
    """NAME: the mean cosine, in [-1, 1], of the features of generated pictures with those of the subject's pictures,
    over all pairs. It is DINO-I on a DINO and CLIP-I on a CLIP (Ruiz et al. 2023, arXiv:2208.12242, section 4.2); other
    networks give other numbers. NAME_of_subject: the same between different pictures of the subject, if there are at
    least two: what a perfect model reaches.
    """

    reference_split = "subject"
    biased = False

    def __init__(self, name: str, extractor: Extractor, layer: str = "pool") -> None:
        super().__init__(extractor, layer)
        self.name, self.headlines = name, {name: True}

    def compute_scores(self) -> MetricResult:
        generated, subject = (F.normalize(features.double()) for features in self.feature_pair(1, "a similarity"))
        cosines = (generated @ subject.T).mean(1)
        scores = {self.name: float(cosines.mean())}
        if (n := len(subject)) > 1:
            scores[f"{self.name}_of_subject"] = float(((subject @ subject.T).sum() - n) / (n * (n - 1)))
        return MetricResult(scores, {self.name: cosines})
