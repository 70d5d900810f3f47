"""What the exact checkers of drawn objects share: finding objects on a plain background, recognising their shapes, and
comparing what was found with what a caption says."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy import ndimage
from torch import Tensor

from dit.data.shapes import coverage, unit_area, unit_perimeter

CHROMA = 51.0  # a pixel is part of an object when its largest and smallest channel differ by a fifth of 255
SPECK = 6  # pixels; smaller components are noise
COLOUR_ERROR = 64.0  # largest RGB distance between a colour and its palette entry
SHAPE_ERROR = 1.0  # largest mean distance between an outline and the ideal one, in pixels
SHAPE_MARGIN = 0.6  # largest ratio of this distance to that from any other ideal shape


@dataclass(frozen=True)
class Outline:
    """The shape of an object, "" if none is clear; its centre (x, y); the nearest shape and its radius (pixels)."""

    shape: str
    centre: np.ndarray
    nearest: str
    radius: float


def nearest(value: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    """Returns the name of the nearest palette entry, or "" if none is near enough."""
    distance = np.linalg.norm(np.array(list(palette.values())) - value, axis=1)
    return list(palette)[int(distance.argmin())] if distance.min() < COLOUR_ERROR else ""


def find_objects(
    image: np.ndarray, most: int, connected: np.ndarray | None = None
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Returns the background's colour (3,) and for each object of a picture its pixels and all those that are nearer to
    it than to another object, (H, W) bool. No objects if there are more than `most`.

    image: (H, W, 3) float. connected: which neighbours connect pixels, (3, 3); by default those that share a side.
    """
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    ground = np.median(border, axis=0)
    labels, count = ndimage.label(image.max(-1) - image.min(-1) > CHROMA, structure=connected)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    kept = [k for k in range(1, count + 1) if sizes[k] >= SPECK]
    if not kept or len(kept) > most:
        return ground, []
    labels = np.where(np.isin(labels, kept), labels, 0)
    closest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    owner = labels[tuple(closest)]
    return ground, [(labels == k, owner == k) for k in kept]


def outline(alpha: np.ndarray, shapes: Sequence[str]) -> Outline:
    """Returns the shape, of `shapes`, whose ideal outline is nearest to that of an object. alpha: (H, W), the share of
    each pixel that the object covers."""
    area, pixel = alpha.sum(), np.arange(len(alpha)) + 0.5
    centre = np.array([(alpha.sum(0) @ pixel), (alpha.sum(1) @ pixel)]) / area
    fitted = {shape: float(np.sqrt(area / unit_area(shape))) for shape in shapes}

    def misfit(shape: str) -> float:
        ideal = coverage(shape, np.array([fitted[shape]]), centre[None], len(alpha))[0]
        return float(np.abs(ideal - alpha).sum() / (unit_perimeter(shape) * fitted[shape]))

    error = {shape: misfit(shape) for shape in shapes}
    shape, other = sorted(error, key=error.__getitem__)[:2]
    clear = error[shape] < min(SHAPE_ERROR, SHAPE_MARGIN * error[other])
    return Outline(shape if clear else "", centre, shape, fitted[shape])


def holds(relation: str, first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two centres (x, y) satisfy the relation and are further apart along its axis than across."""
    dx, dy = second - first
    along, across = (dx, dy) if relation in ("left of", "right of") else (dy, dx)
    return bool((along > 0) == (relation in ("left of", "above")) and abs(along) > abs(across))


@dataclass(frozen=True)
class Meaning:
    """What a caption says: the attributes of its objects, the relations of the first one to the others in their order,
    and the background."""

    objects: Sequence[Sequence[str]]
    relations: Sequence[str]
    background: str


class ObjectsChecker:
    """Implements `Checker` for captions of drawn objects. Raises ValueError for any other caption, and for pictures of
    another size than those of the data."""

    data: ClassVar[str]  # what messages call the data
    sides: ClassVar[Sequence[int]]  # of its pictures, which are square
    grammar: ClassVar[re.Pattern[str]]
    example: ClassVar[str]  # a caption
    attributes: ClassVar[Sequence[str]]  # of an object, in the order of a caption

    def meaning(self, parts: Sequence[Any]) -> Meaning:
        """Returns what a caption says, by the groups of its match with `grammar`."""
        raise NotImplementedError

    def detect(self, picture: np.ndarray, meaning: Meaning) -> tuple[Sequence[Any], str]:
        """Returns the objects of a picture (H, W, 3) uint8, with `attributes` and `centre`, and its background."""
        raise NotImplementedError

    def __call__(self, images: Tensor, captions: Sequence[str]) -> dict[str, np.ndarray]:
        height, width = images.shape[-2:]
        if height != width or height not in self.sides:
            sizes = " or ".join(f"{side}x{side}" for side in self.sides)
            raise ValueError(
                f"the checker of {self.data} reads pictures of {sizes} pixels, and these are {width}x{height}; omit "
                f"prompt accuracy"
            )
        pictures = images.permute(0, 2, 3, 1).cpu().numpy()
        rows = [self.check(p, c) for p, c in zip(pictures, captions, strict=True)]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def check(self, picture: np.ndarray, caption: str) -> dict[str, bool]:
        """Returns which attributes of a picture are right, over all its objects, for the assignment of what was found
        to the objects of the caption that makes most of them right."""
        match = self.grammar.fullmatch(caption)
        if match is None:
            raise ValueError(
                f"{caption!r} is not a caption of the {self.data} data, so the checker cannot check it; write e.g. "
                f"{self.example!r} or omit prompt accuracy"
            )
        meaning = self.meaning(match.groups())
        detected, ground = self.detect(picture, meaning)
        names = [*self.attributes, *(["relation"] if meaning.relations else [])]
        right = dict.fromkeys(names, False)
        for order in itertools.permutations(detected) if len(detected) == len(meaning.objects) else []:
            pairs = list(zip(order, meaning.objects, strict=True))
            found = {name: all(getattr(o, name) == w[i] for o, w in pairs) for i, name in enumerate(self.attributes)}
            if meaning.relations:
                others = zip(meaning.relations, order[1:], strict=True)
                found["relation"] = all(holds(relation, order[0].centre, other.centre) for relation, other in others)
            right = max(right, found, key=lambda r: sum(r.values()))
        return right | {"background": ground == meaning.background}
