"""An exact checker of captioned shapes: measures colour, shape, size, background and relation in a picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from dit.data.objects_checker import Meaning, ObjectsChecker, find_objects, nearest, outline
from dit.data.shapes import BACKGROUNDS, COLOURS, ONE, RELATIONS, SHAPES, SIZES, TAUGHT, TWO

OBJECT = rf"a ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES + TAUGHT)})"
GRAMMAR = re.compile(rf"{OBJECT}(?: ({'|'.join(RELATIONS)}) {OBJECT})? on a ({'|'.join(BACKGROUNDS)}) background")

SIZE_ERROR = 0.14  # largest relative error of the radius


@dataclass(frozen=True)
class DetectedObject:
    """One object found in a picture; an attribute that matches nothing is the empty string. centre: (x, y), pixels."""

    size: str
    colour: str
    shape: str
    centre: np.ndarray


def measure_object(
    image: np.ndarray, own: np.ndarray, ground: np.ndarray, radius: dict[str, float], shapes: Sequence[str]
) -> DetectedObject:
    """Returns the attributes of one object. image: (H, W, 3) float; own: (H, W) bool, the object's pixels and those
    around it; shapes: those that it may have."""
    chroma = np.where(own, image.max(-1) - image.min(-1), 0)
    paint = np.median(image[chroma > 0.8 * chroma.max()], axis=0)
    axis = paint - ground
    alpha = np.where(own, np.clip((image - ground) @ axis / max(axis @ axis, 1.0), 0, 1), 0)
    found = outline(alpha, shapes)
    off = {size: abs(found.radius / r - 1) for size, r in radius.items()}
    size = min(off, key=off.__getitem__)
    return DetectedObject(
        size=size if off[size] < SIZE_ERROR else "",
        colour=nearest(paint, COLOURS),
        shape=found.shape,
        centre=found.centre,
    )


def detect_objects(image: np.ndarray, shapes: Sequence[str] = SHAPES) -> tuple[list[DetectedObject], str]:
    """Returns the objects in an image, (H, W, 3) uint8, each with one of the shapes, and its background ("" if it is
    not in the palette).

    Returns no objects if there are more than two."""
    image = image.astype(np.float64)
    layout = ONE if len(image) == ONE.side else TWO
    radius = {size: sum(r) / 2 for size, r in layout.radius.items()}
    ground, found = find_objects(image, most=2)
    near = [ndimage.binary_dilation(pixels, iterations=2) & nearer for pixels, nearer in found]
    return [measure_object(image, own, ground, radius, shapes) for own in near], nearest(ground, BACKGROUNDS)


class ShapesChecker(ObjectsChecker):
    """The checker of captions of `dit.data.shapes`, also with a shape of `TAUGHT`. A taught shape is looked for only
    where the caption names it, so that every other result is the same as without it."""

    data, sides = "shapes", (ONE.side, TWO.side)
    grammar, example = GRAMMAR, "a large red star on a black background"
    attributes = ("size", "colour", "shape")

    def meaning(self, parts: Sequence[Any]) -> Meaning:
        relation = parts[3]
        return Meaning([parts[0:3], parts[4:7]] if relation else [parts[0:3]], [relation] if relation else [], parts[7])

    def detect(self, picture: np.ndarray, meaning: Meaning) -> tuple[Sequence[Any], str]:
        named = {shape for _, _, shape in meaning.objects}
        return detect_objects(picture, SHAPES + tuple(shape for shape in TAUGHT if shape in named))
