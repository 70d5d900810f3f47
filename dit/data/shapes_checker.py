"""An exact checker of captioned shapes: measures colour, shape, size, background and relation in a picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from torch import Tensor

from dit.data.shapes import (
    BACKGROUNDS,
    COLOURS,
    ONE,
    RELATIONS,
    SHAPES,
    SIZES,
    TAUGHT,
    TWO,
    coverage,
    unit_area,
    unit_perimeter,
)

OBJECT = rf"a ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES + TAUGHT)})"
GRAMMAR = re.compile(rf"{OBJECT}(?: ({'|'.join(RELATIONS)}) {OBJECT})? on a ({'|'.join(BACKGROUNDS)}) background")

CHROMA = 51.0  # a pixel is part of an object when its largest and smallest channel differ by a fifth of 255
SPECK = 6  # pixels; smaller components are noise
COLOUR_ERROR = 64.0  # largest RGB distance between a colour and its palette entry
SHAPE_ERROR = 1.0  # largest mean distance between an outline and the ideal one, in pixels
SHAPE_MARGIN = 0.6  # largest ratio of this distance to that from any other ideal shape
SIZE_ERROR = 0.14  # largest relative error of the radius


@dataclass(frozen=True)
class DetectedObject:
    """One object found in a picture; an attribute that matches nothing is the empty string."""

    size: str
    colour: str
    shape: str
    centre: tuple[float, float]


def nearest(value: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    """Returns the name of the nearest palette entry, or "" if none is near enough."""
    distance = np.linalg.norm(np.array(list(palette.values())) - value, axis=1)
    return list(palette)[int(distance.argmin())] if distance.min() < COLOUR_ERROR else ""


def measure_object(
    image: np.ndarray, own: np.ndarray, ground: np.ndarray, radius: dict[str, float], shapes: Sequence[str]
) -> DetectedObject:
    """Returns the attributes of one object. image: (H, W, 3) float; own: (H, W) bool, the object's pixels and those
    around it; shapes: those that it may have."""
    chroma = np.where(own, image.max(-1) - image.min(-1), 0)
    paint = np.median(image[chroma > 0.8 * chroma.max()], axis=0)
    axis = paint - ground
    alpha = np.where(own, np.clip((image - ground) @ axis / max(axis @ axis, 1.0), 0, 1), 0)
    area = alpha.sum()
    pixel = np.arange(len(image)) + 0.5
    centre = np.array([(alpha.sum(0) @ pixel), (alpha.sum(1) @ pixel)]) / area

    def misfit(shape: str) -> float:
        ideal = coverage(shape, np.array([fitted[shape]]), centre[None], len(image))[0]
        return float(np.abs(ideal - alpha).sum() / (unit_perimeter(shape) * fitted[shape]))

    fitted = {shape: float(np.sqrt(area / unit_area(shape))) for shape in shapes}
    error = {shape: misfit(shape) for shape in shapes}
    shape, other = sorted(error, key=error.__getitem__)[:2]
    clear = error[shape] < min(SHAPE_ERROR, SHAPE_MARGIN * error[other])
    off = {size: abs(fitted[shape] / r - 1) for size, r in radius.items()}
    size = min(off, key=off.__getitem__)
    return DetectedObject(
        size=size if off[size] < SIZE_ERROR else "",
        colour=nearest(paint, COLOURS),
        shape=shape if clear else "",
        centre=(float(centre[0]), float(centre[1])),
    )


def detect_objects(image: np.ndarray, shapes: Sequence[str] = SHAPES) -> tuple[list[DetectedObject], str]:
    """Returns the objects in an image, (H, W, 3) uint8, each with one of the shapes, and its background ("" if it is
    not in the palette).

    Returns no objects if there are more than two."""
    image = image.astype(np.float64)
    layout = ONE if len(image) == ONE.side else TWO
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    ground = np.median(border, axis=0)
    labels, count = ndimage.label(image.max(-1) - image.min(-1) > CHROMA)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    kept = [k for k in range(1, count + 1) if sizes[k] >= SPECK]
    if not kept or len(kept) > 2:
        return [], nearest(ground, BACKGROUNDS)
    labels = np.where(np.isin(labels, kept), labels, 0)
    closest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    owner = labels[tuple(closest)]
    radius = {size: sum(r) / 2 for size, r in layout.radius.items()}
    near = {k: ndimage.binary_dilation(labels == k, iterations=2) & (owner == k) for k in kept}
    return [measure_object(image, near[k], ground, radius, shapes) for k in kept], nearest(ground, BACKGROUNDS)


def holds(relation: str, first: tuple[float, float], second: tuple[float, float]) -> bool:
    """Whether two centres satisfy the relation and are further apart along its axis than across."""
    dx, dy = (b - a for a, b in zip(first, second, strict=True))
    along, across = (dx, dy) if relation in ("left of", "right of") else (dy, dx)
    return (along > 0) == (relation in ("left of", "above")) and abs(along) > abs(across)


class ShapesChecker:
    """Implements `Checker` for captions of `dit.data.shapes`, also with a shape of `TAUGHT`. Raises ValueError for any
    other caption, and for pictures of another size than those of the data. A taught shape is looked for only where the
    caption names it, so that every other result is the same as without it."""

    def __call__(self, images: Tensor, captions: Sequence[str]) -> dict[str, np.ndarray]:
        height, width = images.shape[-2:]
        if height != width or height not in (ONE.side, TWO.side):
            raise ValueError(
                f"the checker of shapes reads pictures of {ONE.side}x{ONE.side} or {TWO.side}x{TWO.side} pixels, and "
                f"these are {width}x{height}; omit prompt accuracy"
            )
        pictures = images.permute(0, 2, 3, 1).cpu().numpy()
        rows = [self._check(p, c) for p, c in zip(pictures, captions, strict=True)]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def _check(self, picture: np.ndarray, caption: str) -> dict[str, bool]:
        match = GRAMMAR.fullmatch(caption)
        if match is None:
            raise ValueError(
                f"{caption!r} is not a caption of the shapes data, so the checker cannot check it; "
                f"write e.g. 'a large red star on a black background' or omit prompt accuracy"
            )
        parts = match.groups()
        relation, background = parts[3], parts[7]
        expected = [parts[0:3], parts[4:7]] if relation else [parts[0:3]]
        taught = tuple(shape for shape in TAUGHT if shape in (parts[2], parts[6]))
        detected, ground = detect_objects(picture, SHAPES + taught)
        names = ("size", "colour", "shape")
        right = dict.fromkeys(names, False) | ({"relation": False} if relation else {})
        orders = [detected, detected[::-1]] if relation else [detected]
        for order in orders if len(detected) == len(expected) else []:
            found = {
                name: all(getattr(o, name) == w[i] for o, w in zip(order, expected, strict=True))
                for i, name in enumerate(names)
            }
            if relation:
                found["relation"] = holds(relation, *(o.centre for o in order))
            right = max(right, found, key=lambda r: sum(r.values()))
        return right | {"background": ground == background}
