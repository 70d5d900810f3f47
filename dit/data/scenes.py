"""Captioned scenes, drawn on the fly: two or three textured objects in relations, 64 x 64 pixels.

`a striped red star above a hollow blue circle on a grey background`, or with three objects
`a solid cyan square below a striped red star and left of a hollow green circle on a black background`. An object has
one of 3 textures, 6 colours and 4 shapes: solid, striped in the colour and its half, or hollow, a thin line with the
background inside. Where the objects are, how large they are and where their stripes begin is in no caption, so that a
caption has many right pictures. A picture is a function of (seed, split, index). A tenth of the captions is never
drawn in the `train` and `val` splits; `unseen` draws only those.
"""

from __future__ import annotations

import hashlib

import numpy as np

from dit.data.shapes import BACKGROUNDS, RELATIONS, SHAPES, SPLITS, hashed, signed_distance, uniform
from dit.data.shapes import COLOURS as ALL_COLOURS

SIDE = 64
TEXTURES = ("solid", "striped", "hollow")
COLOURS = {name: ALL_COLOURS[name] for name in ("red", "green", "blue", "yellow", "purple", "cyan")}
OBJECTS = [(texture, colour, shape) for texture in TEXTURES for colour in COLOURS for shape in SHAPES]

RADIUS = (9.5, 11.5)  # pixels
OFFSET = 15.5  # of an object from the middle of the picture, along a relation
JITTER = 2.5  # largest shift of an object along a relation
DRIFT = 10.0  # largest shift of each of two objects across their relation
LINE = 2.2  # width of the line of a hollow object
PERIOD = 6.0  # of the stripes
DARK = 0.5  # brightness of every second stripe
ATTEMPTS = 400  # the chance that none of so many random captions is of the wanted tenth is 5e-19


def paint_amount(texture: str, signed: np.ndarray, phase: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns how much of each pixel is painted, and with which brightness of the colour: two (N, H, W) float32.

    signed: (N, H, W), the signed distance from the outline. phase: (N,) in [0, 1), where the stripes begin.
    """
    cover = np.clip(0.5 - signed, 0, 1)
    bright = np.ones_like(cover)
    if texture == "hollow":
        cover = cover - np.clip(0.5 - (signed + np.float32(LINE)), 0, 1)
    if texture == "striped":
        row = (np.arange(signed.shape[1], dtype=np.float32) + 0.5) / np.float32(PERIOD) + phase[:, None]
        wave = np.abs((row % 1) - 0.5) * np.float32(PERIOD) - np.float32(PERIOD / 4)  # pixels from the stripe's edge
        bright = np.broadcast_to((1 - (1 - DARK) * np.clip(0.5 + wave, 0, 1))[:, :, None], cover.shape)
    return cover.astype(np.float32), bright.astype(np.float32)


class Scenes:
    """`count` captioned pictures, uint8, 64 x 64, of a split; `triples`: the share of those with three objects."""

    def __init__(self, split: str, count: int, seed: int = 0, triples: float = 0.5) -> None:
        if split not in SPLITS:
            raise ValueError(f"split={split!r} is not one of {', '.join(SPLITS)}")
        if count < 1:
            raise ValueError(f"count={count}: a split needs at least one picture")
        if not 0 <= triples <= 1:
            raise ValueError(f"triples={triples} must lie between 0 and 1")
        self.key = (seed, SPLITS.index(split))
        index = np.arange(count)
        self.three = uniform(*self.key, index, 0) < triples
        self.objects, self.relations, self.ground = self._draw(index, unseen=split == "unseen")
        self.captions = [self._caption(i) for i in range(count)]
        self.fingerprint = hashlib.sha256(f"scenes 1 {self.key} {count} {triples}".encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.captions)

    def _draw(self, index: np.ndarray, unseen: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the objects (N, 3), relations (N, 2) and background (N,) of each picture: the first of its random
        captions that is one of the tenth that training never draws, or that is not."""
        objects, relations = np.zeros((len(index), 3), int), np.zeros((len(index), 2), int)
        ground, open_rows = np.zeros(len(index), int), np.arange(len(index))
        for attempt in range(ATTEMPTS):
            draws = [uniform(*self.key, index[open_rows], 100 + 6 * attempt + k) for k in range(6)]
            objects[open_rows] = np.stack([(u * len(OBJECTS)).astype(int) for u in draws[:3]], 1)
            ground[open_rows] = (draws[3] * len(BACKGROUNDS)).astype(int)
            three = self.three[open_rows]
            # of two objects any relation; of three a vertical one and a horizontal one
            first = np.where(three, 2 + (draws[4] * 2).astype(int), (draws[4] * len(RELATIONS)).astype(int))
            relations[open_rows] = np.stack([first, (draws[5] * 2).astype(int)], 1)
            held = held_out(objects[open_rows], relations[open_rows], ground[open_rows], three)
            open_rows = open_rows[held != unseen]
            if not len(open_rows):
                return objects, relations, ground
        raise AssertionError(f"{len(open_rows)} pictures have no caption after {ATTEMPTS} attempts")

    def _caption(self, row: int) -> str:
        first, second, third = ("a " + " ".join(OBJECTS[i]) for i in self.objects[row])
        text = f"{first} {RELATIONS[self.relations[row, 0]]} {second}"
        if self.three[row]:
            text += f" and {RELATIONS[self.relations[row, 1]]} {third}"
        return f"{text} on a {list(BACKGROUNDS)[self.ground[row]]} background"

    def _centres(self, index: np.ndarray) -> np.ndarray:
        """Returns the centres of the three objects, (N, 3, 2) as (x, y) in pixels."""
        draw = np.stack([uniform(*self.key, index, 10 + k) for k in range(6)], 1).reshape(-1, 3, 2)
        relations, three = self.relations[index], self.three[index]
        rows = np.arange(len(index))
        centre = SIDE / 2 + JITTER * (2 * draw - 1)
        # the first of (left of, above) is moved towards zero, and the other object away from it
        towards = np.where(relations % 2 == 0, -1, 1) * OFFSET
        axis = relations[:, 0] // 2  # 0: x, 1: y
        centre[rows, 0, axis] += towards[:, 0]
        centre[rows, 1, axis] -= towards[:, 0]
        for place in range(2):  # across the relation two objects move freely, and three stand in the corners
            across = SIDE / 2 + DRIFT * (2 * draw[rows, place, 1 - axis] - 1)
            centre[rows, place, 1 - axis] = np.where(three, centre[rows, place, 1 - axis] + towards[:, 1], across)
        centre[:, 2, 0] -= towards[:, 1]
        centre[:, 2, 1] += towards[:, 0]
        return centre

    def images(self, index: np.ndarray) -> np.ndarray:
        index = np.asarray(index)
        centre = self._centres(index)
        canvas = np.array(list(BACKGROUNDS.values()), np.float32)[self.ground[index]][:, :, None, None]
        canvas = np.repeat(np.repeat(canvas, SIDE, 2), SIDE, 3)
        for place in range(3):
            rows = np.flatnonzero(self.three[index] | (place < 2))
            radius = RADIUS[0] + (RADIUS[1] - RADIUS[0]) * uniform(*self.key, index[rows], 20 + place)
            phase = uniform(*self.key, index[rows], 30 + place)
            canvas[rows] = self._paint(
                canvas[rows], self.objects[index[rows], place], centre[rows, place], radius, phase
            )
        return np.rint(canvas).astype(np.uint8)

    def _paint(
        self, canvas: np.ndarray, objects: np.ndarray, centre: np.ndarray, radius: np.ndarray, phase: np.ndarray
    ) -> np.ndarray:
        cover, bright = (np.zeros((len(objects), SIDE, SIDE), np.float32) for _ in range(2))
        texture, colour, shape = np.unravel_index(objects, (len(TEXTURES), len(COLOURS), len(SHAPES)))
        for look, form in np.unique(np.stack([texture, shape], 1), axis=0):
            rows = (texture == look) & (shape == form)
            signed = signed_distance(SHAPES[form], radius[rows], centre[rows], SIDE)
            cover[rows], bright[rows] = paint_amount(TEXTURES[look], signed, phase[rows])
        paint = np.array(list(COLOURS.values()), np.float32)[colour][:, :, None, None]
        return canvas + cover[:, None] * (bright[:, None] * paint - canvas)


def held_out(objects: np.ndarray, relations: np.ndarray, ground: np.ndarray, three: np.ndarray) -> np.ndarray:
    """Whether training never draws these scenes: objects (N, 3), relations (N, 2), ground (N,), three (N,) -> (N,).
    The two descriptions of one picture (`a above b`, `b below a`) are both in or both out."""
    first, second, third = objects.T
    swap = ~three & (relations[:, 0] % 2 == 1)
    first, second = np.where(swap, second, first), np.where(swap, first, second)
    relation = np.where(swap, relations[:, 0] - 1, relations[:, 0])
    rest = np.where(three, 1 + len(OBJECTS) * relations[:, 1] + third, 0)
    return hashed(733, first, relation, second, ground, rest) % np.uint64(10) == 0
