"""Captioned shapes, drawn on the fly: the embedded data set. A picture is a function of (seed, split, index).

One object, `a large red star on a black background`: 4 shapes x 8 colours x 2 sizes x 3 backgrounds, or with
`pairs` two objects in a relation, `a small red circle above a large blue square on a grey background`.
A tenth of the combinations is never drawn in the `train` and `val` splits; `unseen` draws only those.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

SHAPES = ("circle", "square", "triangle", "star")
TAUGHT = ("heart",)  # shapes that this data set never draws: `dit.data.taught_shape` draws a few of them
SIZES = ("small", "large")
COLOURS = {
    "red": (222, 36, 36),
    "green": (36, 168, 60),
    "blue": (40, 80, 224),
    "yellow": (244, 214, 36),
    "orange": (246, 132, 28),
    "purple": (140, 56, 192),
    "cyan": (36, 204, 216),
    "pink": (244, 120, 184),
}
BACKGROUNDS = {"black": (0, 0, 0), "grey": (128, 128, 128), "white": (255, 255, 255)}
RELATIONS = ("left of", "right of", "above", "below")
SPLITS = ("train", "val", "unseen")

# A shape with n corners at radius 1 and, half-way between them, n corners at the inner radius.
CORNERS = {"square": (4, np.cos(np.pi / 4)), "triangle": (3, 0.5), "star": (5, 0.45)}
# A heart is a square on its corner, with half-diagonal 1, and a half disc on each of its upper sides. Its centroid is
# HEART_RISE above the centre of the square, and the lower corner is the point that is farthest from it.
HEART_AREA = 2 + np.pi / 2
HEART_RISE = (np.pi / 4 + 1 / 3) / HEART_AREA
HEART_RADIUS = 1 + HEART_RISE


@dataclass(frozen=True)
class Layout:
    """Lengths in pixels: the picture's side, (lowest, highest) circumradius by size, and the jitter of a centre."""

    side: int
    radius: dict[str, tuple[float, float]]
    jitter: float


ONE = Layout(32, {"small": (6.7, 7.3), "large": (11.5, 12.5)}, 2.0)
TWO = Layout(48, {"small": (5.7, 6.3), "large": (9.7, 10.3)}, 1.5)


def coverage(shape: str, radius: np.ndarray, centre: np.ndarray, side: int) -> np.ndarray:
    """Returns the share of each pixel that a shape covers, anti-aliased from its signed distance.

    radius: (N,) and centre: (N, 2) as (x, y), in pixels -> (N, side, side) float32 in [0, 1].
    """
    return np.clip(0.5 - signed_distance(shape, radius, centre, side), 0, 1).astype(np.float32)


def signed_distance(shape: str, radius: np.ndarray, centre: np.ndarray, side: int) -> np.ndarray:
    """Returns the distance of each pixel's centre from the outline of a shape, negative inside it; outside a corner,
    that from the nearest edge's line. Arguments as for `coverage`."""
    grid = np.arange(side, dtype=np.float32) + 0.5
    x = grid[None, None, :] - centre[:, 0, None, None].astype(np.float32)
    y = grid[None, :, None] - centre[:, 1, None, None].astype(np.float32)
    r = radius[:, None, None].astype(np.float32)
    distance = np.sqrt(x * x + y * y)
    if shape == "circle":
        return distance - r
    if shape == "heart":
        return heart_distance(np.abs(x), y, r / np.float32(HEART_RADIUS))
    # fold the plane into one wedge of half a corner, where the outline is a single straight edge
    n, inner = CORNERS[shape]
    turn = np.pi / 4 if shape == "square" else 0.0
    angle = np.arctan2(x, -y) + turn
    wedge = np.float32(np.pi / n)
    folded = np.abs((angle + wedge) % (2 * wedge) - wedge)
    px, py = distance * np.cos(folded), distance * np.sin(folded)
    edge = np.array([inner * np.cos(wedge) - 1, inner * np.sin(wedge)])
    normal = (np.array([edge[1], -edge[0]]) / np.hypot(*edge)).astype(np.float32)
    return (px - r) * normal[0] + py * normal[1]


def heart_distance(x: np.ndarray, y: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Returns the signed distance from a heart around the origin, with x >= 0 by symmetry. half: half the diagonal of
    its square."""
    below = y - half * np.float32(HEART_RISE)  # from the centre of the square
    square = (x + np.abs(below) - half) * np.float32(np.sqrt(0.5))
    disc = np.hypot(x - half / 2, below + half / 2) - half * np.float32(np.sqrt(0.5))
    return np.minimum(square, disc)


def unit_area(shape: str) -> float:
    """Returns the area of a shape of circumradius 1."""
    if shape == "circle":
        return float(np.pi)
    if shape == "heart":
        return float(HEART_AREA / HEART_RADIUS**2)
    n, inner = CORNERS[shape]
    return float(n * inner * np.sin(np.pi / n))


def unit_perimeter(shape: str) -> float:
    """Returns the length of the outline of a shape of circumradius 1."""
    if shape == "circle":
        return float(2 * np.pi)
    if shape == "heart":
        return float((2 + np.pi) * np.sqrt(2) / HEART_RADIUS)
    n, inner = CORNERS[shape]
    return float(2 * n * np.hypot(inner * np.cos(np.pi / n) - 1, inner * np.sin(np.pi / n)))


def hashed(*keys: int | np.ndarray) -> np.ndarray:
    """Hashes integer keys (broadcast) to uniform uint64 by splitmix64: the data's only source of randomness."""
    state = np.zeros(np.broadcast_shapes(*(np.shape(k) for k in keys)), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:
            state = state + np.asarray(key).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def uniform(*keys: int | np.ndarray) -> np.ndarray:
    """Returns uniform float64 in [0, 1) for the keys, as `hashed`."""
    return (hashed(*keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


OBJECTS = [(size, colour, shape) for size in SIZES for colour in COLOURS for shape in SHAPES]


def picture_numbers(pairs: bool, unseen: bool) -> np.ndarray:
    """Returns the numbers of all scenes that training uses, or, with `unseen`, of the tenth that it never uses.

    A scene is (object, background) or (object, relation, object, background), numbered in mixed radix. The two
    descriptions of one picture (`a above b`, `b below a`) are both in or both out.
    """
    if not pairs:
        number = np.arange(len(OBJECTS) * len(BACKGROUNDS))
        key = number
    else:
        shape = (len(OBJECTS), len(RELATIONS), len(OBJECTS), len(BACKGROUNDS))
        number = np.arange(np.prod(shape))
        first, relation, second, ground = np.unravel_index(number, shape)
        swap = relation % 2 == 1
        first, second = np.where(swap, second, first), np.where(swap, first, second)
        key = np.ravel_multi_index((first, relation - relation % 2, second, ground), shape)
    return number[(hashed(732, key) % np.uint64(10) == 0) == unseen]


class Shapes:
    """`count` captioned pictures, uint8, 32 x 32 (48 x 48 with `pairs`), from the scenes of a split."""

    def __init__(self, split: str, count: int, seed: int = 0, pairs: bool = False) -> None:
        if split not in SPLITS:
            raise ValueError(f"split={split!r} is not one of {', '.join(SPLITS)}")
        if count < 1:
            raise ValueError(f"count={count}: a split needs at least one picture")
        self.key = (seed, SPLITS.index(split), int(pairs))
        self.pairs, self.layout = pairs, TWO if pairs else ONE
        allowed = picture_numbers(pairs, unseen=split == "unseen")
        self.scene = allowed[(uniform(*self.key, np.arange(count), 0) * len(allowed)).astype(np.int64)]
        self.captions = [self._caption(int(number)) for number in self.scene]
        self.fingerprint = hashlib.sha256(f"shapes 1 {self.key} {count}".encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.scene)

    def _parts(self, scene: np.ndarray) -> tuple[np.ndarray, ...]:
        """Scene numbers -> (objects (N, 1 or 2), relation (N,), background (N,))."""
        objects, grounds = len(OBJECTS), len(BACKGROUNDS)
        if not self.pairs:
            first, ground = np.unravel_index(scene, (objects, grounds))
            return first[:, None], np.zeros_like(first), ground
        first, relation, second, ground = np.unravel_index(scene, (objects, len(RELATIONS), objects, grounds))
        return np.stack([first, second], 1), relation, ground

    def _caption(self, scene: int) -> str:
        objects, relation, ground = (part[0] for part in self._parts(np.array([scene])))
        names = ["a " + " ".join(OBJECTS[i]) for i in objects]
        text = f" {RELATIONS[relation]} ".join(names)
        return f"{text} on a {list(BACKGROUNDS)[ground]} background"

    def images(self, index: np.ndarray) -> np.ndarray:
        index = np.asarray(index)
        objects, relation, ground = self._parts(self.scene[index])
        side, jitter = self.layout.side, self.layout.jitter
        canvas = np.array(list(BACKGROUNDS.values()), np.float32)[ground][:, :, None, None]
        canvas = np.repeat(np.repeat(canvas, side, 2), side, 3)
        for place in range(objects.shape[1]):
            draw = [uniform(*self.key, index, 1 + 3 * place + k) for k in range(3)]
            centre = np.stack([side / 2 + jitter * (2 * u - 1) for u in draw[:2]], 1)
            if self.pairs:  # the first object of (left of, above) is moved a quarter of the side towards zero
                towards = np.where((relation % 2 == 0) == (place == 0), -1, 1) * side / 4
                centre[np.arange(len(index)), relation // 2] += towards
            canvas = self._paint(canvas, objects[:, place], centre, draw[2])
        return np.rint(canvas).astype(np.uint8)

    def _paint(self, canvas: np.ndarray, objects: np.ndarray, centre: np.ndarray, u: np.ndarray) -> np.ndarray:
        size, colour, shape = np.unravel_index(objects, (len(SIZES), len(COLOURS), len(SHAPES)))
        low, high = np.array([self.layout.radius[s] for s in SIZES])[size].T
        radius = low + (high - low) * u
        cover = np.empty((len(objects), 1, *canvas.shape[2:]), np.float32)
        for number, name in enumerate(SHAPES):
            rows = shape == number
            cover[rows, 0] = coverage(name, radius[rows], centre[rows], self.layout.side)
        paint = np.array(list(COLOURS.values()), np.float32)[colour][:, :, None, None]
        return canvas + cover * (paint - canvas)
