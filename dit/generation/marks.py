"""Watermarks of generated pictures: the settings of a mark, how it gets into a picture, and the test that finds it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dit.diffusion.time import Grid
from dit.generation import watermark
from dit.generation.watermark import Detection, read_key
from dit.pipeline import Pipeline

RATE, LARGEST_RATE = 1e-6, 1e-3


@dataclass(frozen=True)
class Origin:
    """How a picture may have been made, for marks that are tested through the model. grid: of the run; prompt: None if
    it is not known; seeds: those that are tried."""

    pipeline: Pipeline
    grid: Grid
    prompt: str | None
    seeds: Sequence[int]


class Mark:
    """A watermark with a secret key. key: its file; card: the file with its measured power for a model, or None; rate:
    the false-alarm rate at which it counts as found, at most 0.001.

    A subclass sets `kind`, and changes pictures in `embed`, or the initial noise in `seeds`.
    """

    kind = ""
    in_noise = False  # whether the mark is in the initial noise, so that its power depends on the recipe

    def __init__(self, key: str, card: str | None = None, rate: float = RATE) -> None:
        if not 0 < rate <= LARGEST_RATE:  # a larger one would "find" marks in pictures that have none
            raise ValueError(
                f"marks.rate={rate}: the rate of false alarms must be above 0 and at most {LARGEST_RATE}; say 1e-6"
            )
        self.key, self.card, self.rate = read_key(key), card, rate

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the power of the mark besides its model."""
        return {"kind": self.kind, "rate": self.rate}

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the settings and the key."""
        return hashlib.sha256(json.dumps(self.settings).encode() + self.key).hexdigest()[:16]

    def seeds(self, seeds: Sequence[int]) -> list[int]:
        """Returns the seeds of the noise that pictures of these seeds are sampled from."""
        return list(seeds)

    def embed(self, picture: np.ndarray) -> np.ndarray:
        """Returns the picture (H, W, 3) uint8 with the mark. Raises ValueError if it is too small."""
        return picture

    def detect(
        self, picture: np.ndarray, size: tuple[int, int] | None = None, origin: Origin | None = None
    ) -> Detection:
        """Tests a picture (H, W, 3) uint8, also mirrored. size: (width, height) when it was made, if it has another
        one. Raises ValueError if the test needs an origin and there is none, or if the picture is too small."""
        raise NotImplementedError


class Pattern(Mark):
    """A pattern of signs in the luminance (`dit.generation.watermark`). amplitude: root mean square of the change, in
    levels of 255."""

    kind = "pattern"

    def __init__(self, key: str, amplitude: float, card: str | None = None, rate: float = RATE) -> None:
        super().__init__(key, card, rate)
        if not 0 < amplitude <= 64:
            raise ValueError(f"marks.amplitude={amplitude} must be above 0 and at most 64 levels of 255; say 2 or 4")
        self.amplitude = float(amplitude)

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | {"amplitude": self.amplitude}

    def embed(self, picture: np.ndarray) -> np.ndarray:
        return watermark.embed(picture, self.key, self.amplitude)

    def detect(
        self, picture: np.ndarray, size: tuple[int, int] | None = None, origin: Origin | None = None
    ) -> Detection:
        return watermark.detect(picture, self.key, size)
