"""An exact checker of captioned scenes: measures the texture, colour and shape of each object, the relations and the
background of a picture, by drawing what it finds again and comparing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from dit.data.objects_checker import Meaning, ObjectsChecker, find_objects, nearest, outline
from dit.data.scenes import COLOURS, SIDE, TEXTURES, paint_amount
from dit.data.shapes import BACKGROUNDS, RELATIONS, SHAPES, signed_distance

OBJECT = rf"a ({'|'.join(TEXTURES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
GRAMMAR = re.compile(
    rf"{OBJECT} ({'|'.join(RELATIONS)}) {OBJECT}(?: and ({'|'.join(RELATIONS)}) {OBJECT})?"
    rf" on a ({'|'.join(BACKGROUNDS)}) background"
)

TEXTURE_ERROR = 0.12  # largest mean difference from the picture drawn again, as a share of 255
TEXTURE_MARGIN = 0.8  # largest ratio of this difference to that with any other texture
PHASES = np.arange(12) / 12


@dataclass(frozen=True)
class DetectedObject:
    """One object found in a picture; an attribute that matches nothing is the empty string. centre: (x, y), pixels."""

    texture: str
    colour: str
    shape: str
    centre: np.ndarray


def silhouette(chroma: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the share of each pixel that an object and what it encloses cover, (H, W) float in [0, 1].

    mask: (H, W) bool, the object's pixels. A pixel at the edge counts by its chroma beside the largest one around it.
    """
    filled = ndimage.binary_fill_holes(mask)
    inside = ndimage.binary_erosion(filled)
    edge = ndimage.binary_dilation(filled) & ~inside
    share = chroma / np.maximum(ndimage.maximum_filter(np.where(mask, chroma, 0), 3), 1)
    return np.where(inside, 1.0, np.where(edge, np.clip(share, 0, 1), 0.0))


def measure_object(image: np.ndarray, mask: np.ndarray, others: np.ndarray, ground: np.ndarray) -> DetectedObject:
    """Returns the attributes of one object. image: (H, W, 3) float; mask, others: (H, W) bool, its pixels and those of
    the other objects; ground: (3,), the background's colour."""
    chroma = np.where(others, 0, image.max(-1) - image.min(-1))
    paint = np.median(image[mask & (chroma > 0.8 * chroma[mask].max())], axis=0)
    alpha = silhouette(chroma, mask)
    found = outline(alpha, SHAPES)
    signed = signed_distance(found.nearest, np.array([found.radius]), found.centre[None], len(image))
    region = ndimage.binary_dilation(alpha > 0, iterations=1) & ~others

    def difference(texture: str) -> float:
        phases = PHASES if texture == "striped" else PHASES[:1]
        cover, bright = paint_amount(texture, np.repeat(signed, len(phases), 0), phases)
        drawn = ground + cover[..., None] * (bright[..., None] * paint - ground)
        return float((np.abs(drawn - image)[:, region].mean(-1).sum(-1) / alpha.sum()).min() / 255)

    fit = {texture: difference(texture) for texture in TEXTURES}
    texture, second = sorted(fit, key=fit.__getitem__)[:2]
    same = fit[texture] < min(TEXTURE_ERROR, TEXTURE_MARGIN * fit[second])
    return DetectedObject(texture if same else "", nearest(paint, COLOURS), found.shape, found.centre)


def detect_objects(image: np.ndarray) -> tuple[list[DetectedObject], str]:
    """Returns the objects in an image, (64, 64, 3) uint8, and its background ("" if it is not in the palette). Returns
    no objects if there are more than three."""
    image = image.astype(np.float64)
    ground, found = find_objects(image, most=3, connected=np.ones((3, 3)))
    objects = [measure_object(image, pixels, ~nearer, ground) for pixels, nearer in found]
    return objects, nearest(ground, BACKGROUNDS)


class ScenesChecker(ObjectsChecker):
    """The checker of captions of `dit.data.scenes`."""

    data, sides = "scenes", (SIDE,)
    grammar, example = GRAMMAR, "a striped red star above a hollow blue circle on a grey background"
    attributes = ("texture", "colour", "shape")

    def meaning(self, parts: Sequence[Any]) -> Meaning:
        objects = [part for part in (parts[0:3], parts[4:7], parts[8:11]) if part[0]]
        return Meaning(objects, [relation for relation in (parts[3], parts[7]) if relation], parts[11])

    def detect(self, picture: np.ndarray, meaning: Meaning) -> tuple[Sequence[Any], str]:
        return detect_objects(picture)
