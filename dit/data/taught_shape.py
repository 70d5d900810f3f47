"""A few captioned pictures of a shape that `dit.data.shapes` never draws: what a trained model is taught afterwards."""

from __future__ import annotations

import hashlib
from itertools import product

import numpy as np

from dit.data.shapes import BACKGROUNDS, COLOURS, ONE, SIZES, TAUGHT, coverage, uniform

SPLITS = ("train", "unseen")
TRAINED = ("red", "green", "blue", "yellow")  # the colours of training, each of them small and large
KEY = 947  # of the draws, so that they differ from those of `dit.data.shapes`


class TaughtShape:
    """`count` captioned pictures of one shape, uint8, 32 x 32. Picture i is a function of (seed, split, i).

    `train` draws it in four of the eight colours, small and large, on the three backgrounds in turn: eight of the 48
    combinations; `unseen` draws it in the other 40. Centres and radii are distributed as in `Shapes`. Raises ValueError
    for another split or size, or a shape that is not in TAUGHT.
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
        self.shape, self.key = shape, (KEY, seed, SPLITS.index(split))
        grounds = list(BACKGROUNDS)
        trained = [
            (size, colour, grounds[place % len(grounds)])
            for place, (colour, size) in enumerate(product(TRAINED, SIZES))
        ]
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
        moved = np.array([2 * uniform(*self.key, place, axis) - 1 for axis in range(2)])
        low, high = ONE.radius[size]
        radius = low + (high - low) * uniform(*self.key, place, 2)
        cover = coverage(self.shape, radius[None], ONE.side / 2 + ONE.jitter * moved[None], ONE.side)
        paper, paint = (np.array(of, np.float32)[:, None, None] for of in (BACKGROUNDS[ground], COLOURS[colour]))
        return np.rint(paper + cover * (paint - paper)).astype(np.uint8)
