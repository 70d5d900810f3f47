"""A few captioned pictures of a shape that `dit.data.shapes` never draws: what a trained model is taught afterwards."""

from __future__ import annotations

import hashlib
from itertools import product

import numpy as np

from dit.data.shapes import BACKGROUNDS, COLOURS, ONE, SIZES, TAUGHT, coverage, uniform

SPLITS = ("train", "unseen")
KEY = 947  # of the draws, so that they differ from those of `dit.data.shapes`


class TaughtShape:
    """`count` captioned pictures of one shape, uint8, 32 x 32. Picture i is a function of (seed, split, i).

    `train` draws it once in each of the eight colours, small and large and on the three backgrounds in turn, in the
    middle and with the mean radius: eight of the 48 combinations. `unseen` draws it in the other 40, with centres and
    radii as in `Shapes`. Raises ValueError for another split or size, or a shape that is not in TAUGHT.
    """

    def __init__(self, shape: str, split: str, count: int, seed: int = 0, size: int = ONE.side) -> None:
        if shape not in TAUGHT:
            raise ValueError(f"shape={shape!r} is not one of {', '.join(TAUGHT)}")
        if split not in SPLITS:
            raise ValueError(f"split={split!r} is not one of {', '.join(SPLITS)}")
        if size != ONE.side:
            raise ValueError(f"data.size={size}: a taught shape is drawn with {ONE.side} pixels a side")
        if count < 1:
            raise ValueError(f"count={count}: a split needs at least one picture")
        self.shape, self.key, self.spread = shape, (KEY, seed, SPLITS.index(split)), float(split != "train")
        grounds = list(BACKGROUNDS)
        trained = [(SIZES[i % len(SIZES)], colour, grounds[i % len(grounds)]) for i, colour in enumerate(COLOURS)]
        every = product(SIZES, COLOURS, BACKGROUNDS)
        scenes = trained if split == "train" else [scene for scene in every if scene not in trained]
        self.scenes = [scenes[place % len(scenes)] for place in range(count)]
        self.captions = [f"a {size} {colour} {shape} on a {ground} background" for size, colour, ground in self.scenes]
        self.fingerprint = hashlib.sha256(f"taught 1 {shape} {self.key} {count}".encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.scenes)

    def images(self, index: np.ndarray) -> np.ndarray:
        return np.stack([self._image(int(place)) for place in np.asarray(index)])

    def _image(self, place: int) -> np.ndarray:
        size, colour, ground = self.scenes[place]
        moved = np.array([self.spread * (2 * uniform(*self.key, place, k) - 1) for k in range(3)])
        low, high = ONE.radius[size]
        radius = (low + high + (high - low) * moved[2:]) / 2
        cover = coverage(self.shape, radius, ONE.side / 2 + ONE.jitter * moved[None, :2], ONE.side)
        paper, paint = (np.array(of, np.float32)[:, None, None] for of in (BACKGROUNDS[ground], COLOURS[colour]))
        return np.rint(paper + cover * (paint - paper)).astype(np.uint8)
