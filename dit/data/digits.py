"""The 1,797 real handwritten digits of scikit-learn (8 x 8, grey), captioned `a handwritten seven`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from torch import Tensor

from dit.diffusion.noise import generator

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HELD_OUT = 297


class Digits:
    """The pictures of a split, (N, 3, 8, 8) uint8: 1500 in `train` and the other 297 in `val`, a fixed random split."""

    def __init__(self, split: str) -> None:
        if split not in ("train", "val"):
            raise ValueError(f"split={split!r} is neither 'train' nor 'val'")
        digits = load_digits()
        order = torch.randperm(len(digits.target), generator=generator(0)).numpy()
        rows = order[:HELD_OUT] if split == "val" else order[HELD_OUT:]
        self.pixels = np.rint(digits.images[rows] * (255 / 16)).astype(np.uint8)
        self.captions = [f"a handwritten {NAMES[label]}" for label in digits.target[rows]]
        self.fingerprint = hashlib.sha256(self.pixels.tobytes() + "".join(self.captions).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, index: np.ndarray) -> np.ndarray:
        return np.repeat(self.pixels[np.asarray(index)][:, None], 3, axis=1)


class DigitsChecker:
    """Implements `Checker` for `a handwritten ...`: a support vector machine, fitted to the real training digits,
    classifies the picture. It makes errors on real held-out digits too; their accuracy is the upper bound."""

    def __init__(self) -> None:
        train = Digits("train")
        self.classifier = SVC(gamma=0.001).fit(train.pixels.reshape(len(train), -1) / 16.0, train.captions)

    def __call__(self, images: Tensor, captions: Sequence[str]) -> dict[str, np.ndarray]:
        unknown = sorted(set(captions) - {f"a handwritten {name}" for name in NAMES})
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not a caption of the digits data; write e.g. 'a handwritten seven'")
        grey = images.float().mean(1).flatten(1).cpu().numpy() / 16.0
        return {"digit": self.classifier.predict(grey) == np.array(captions)}
