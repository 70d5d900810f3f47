"""Rules in words: pictures are refused that are too similar to a concept in a CLIP model.

A concept has one or more texts; the score of a picture is its largest cosine with any of them. The threshold comes from
pictures without the concept: it is the k-th largest of their n scores. The share of further such pictures that are
above it, the false-alarm rate, is then distributed as Beta(k, n - k + 1), whatever the distribution of the scores is
(Wilks 1941, Ann. Math. Stat. 12, p. 91), if both sets of pictures are made in the same way.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dit.devices import device_of
from dit.errors import shortened
from dit.files import read_json
from dit.generation.policy import Rule, Verdict
from dit.metrics.extractors import OpenClip


@dataclass(frozen=True)
class Threshold:
    """A threshold for scores, its expected false-alarm rate with the 95 % interval of that rate, and the number of
    pictures without the concept that it was calibrated on."""

    threshold: float
    false_alarm_rate: float
    interval: tuple[float, float]
    pictures: int


@dataclass(frozen=True)
class Concept:
    """A concept by name: the texts that describe it, and its threshold."""

    name: str
    texts: tuple[str, ...]
    threshold: Threshold


def encoded(extractor: OpenClip, texts: Sequence[str]) -> Tensor:
    """Returns the unit vectors of texts, (L, dim) float64 on the CPU."""
    return F.normalize(extractor.text_features(texts).cpu().double())


def similarity(extractor: OpenClip, images: Tensor, texts: Tensor) -> Tensor:
    """Returns the largest cosine of each of N pictures (N, 3, H, W) uint8 with any of the texts, given as unit vectors,
    (N,) float64 on the CPU."""
    return (F.normalize(extractor(images)["pool"].cpu().double()) @ texts.T).max(1).values


def calibrate(scores: Tensor, rate: float) -> Threshold:
    """Returns the lowest threshold whose expected false-alarm rate is at most `rate`, from the scores (N,) of pictures
    without the concept. Raises ValueError if they are too few for that rate."""
    from scipy.stats import beta

    n = len(scores)
    if not 0 < rate < 1:
        raise ValueError(f"rate={rate} must be between 0 and 1: the share of pictures that are refused by mistake")
    k = math.floor(rate * (n + 1) + 1e-9)
    if k < 1:
        raise ValueError(
            f"rate={rate:g} cannot be calibrated on {n} pictures; give at least {math.ceil(1 / rate) - 1} without the "
            f"concept"
        )
    low, high = beta.ppf([0.025, 0.975], k, n - k + 1)
    return Threshold(float(scores.topk(k).values[-1]), k / (n + 1), (float(low), float(high)), n)


def as_json(concepts: Sequence[Concept], extractor: OpenClip) -> str:
    """Returns the content of a file of concepts, which names the model of its thresholds."""
    held = {concept.name: {"texts": list(concept.texts), **asdict(concept.threshold)} for concept in concepts}
    return json.dumps({"model": extractor.fingerprint, "concepts": held}, indent=2, ensure_ascii=False) + "\n"


def read_concepts(file: str | Path, extractor: OpenClip) -> list[Concept]:
    """Returns the concepts of a file. Raises ValueError if it cannot be read, has none, or was calibrated with another
    model."""
    held, remedy = read_json(file), "write it with python -m dit.cli.calibrate"
    try:
        concepts = [concept_of(name, entry) for name, entry in held["concepts"].items()]
        model = str(held["model"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(f"{file} is not a file of calibrated concepts; {remedy}") from None
    if not concepts:
        raise ValueError(f"{file} has no concepts; {remedy}")
    if model != extractor.fingerprint:
        raise ValueError(
            f"{file} was calibrated with another model ({model}, not {extractor.fingerprint}): its thresholds do not "
            f"hold; calibrate anew, or choose that model as policy.concepts.extractor"
        )
    return concepts


def concept_of(name: str, entry: dict[str, Any]) -> Concept:
    low, high = map(float, entry["interval"])
    values = float(entry["threshold"]), float(entry["false_alarm_rate"]), (low, high), int(entry["pictures"])
    if not math.isfinite(values[0]) or not entry["texts"] or isinstance(entry["texts"], str):
        raise ValueError(name)
    return Concept(name, tuple(map(str, entry["texts"])), Threshold(*values))


class Concepts(Rule):
    """Refuses pictures of the concepts of a file, which `python -m dit.cli.calibrate` writes. device: of the model."""

    def __init__(self, file: str, extractor: OpenClip, device: str = "auto") -> None:
        self.extractor = extractor.to(device_of(device))
        self.concepts = read_concepts(file, extractor)
        self._texts = [encoded(extractor, concept.texts) for concept in self.concepts]
        self.fingerprint = hashlib.sha256(as_json(self.concepts, extractor).encode()).hexdigest()[:16]

    def check_pictures(self, images: Tensor) -> list[Verdict]:
        scores = torch.stack([similarity(self.extractor, images, texts) for texts in self._texts], 1)
        return [self._verdict(row) for row in scores.tolist()]

    def _verdict(self, scores: Sequence[float]) -> Verdict:
        """Returns the verdict on the concept that exceeds its threshold most."""
        pairs = list(zip(scores, self.concepts, strict=True))
        score, worst = max(pairs, key=lambda pair: pair[0] - pair[1].threshold.threshold)
        limit = worst.threshold
        if score <= limit.threshold:
            return Verdict(True, "", score, limit.threshold)
        low, high = limit.interval
        reason = (
            f"{shortened(worst.name)!r}: the cosine with its words is {score:.4f}, above {limit.threshold:.4f}, which "
            f"{limit.false_alarm_rate:.2%} [{low:.2%}, {high:.2%}] of the pictures without it exceed"
        )
        return Verdict(False, reason, score, limit.threshold)
