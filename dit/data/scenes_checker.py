"""An exact checker of captioned scenes: measures the texture, colour and shape of each object, the relations and the
background of a picture, by drawing what it finds again and comparing."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from torch import Tensor

from dit.data.scenes import COLOURS, SIDE, TEXTURES, paint_amount
from dit.data.shapes import BACKGROUNDS, RELATIONS, SHAPES, coverage, signed_distance, unit_area, unit_perimeter
from dit.data.shapes_checker import CHROMA, SHAPE_ERROR, SHAPE_MARGIN, SPECK, holds, nearest

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
    """One object found in a picture; an attribute that matches nothing is the empty string."""

    texture: str
    colour: str
    shape: str
    centre: tuple[float, float]


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
    area, pixel = alpha.sum(), np.arange(len(image)) + 0.5
    centre = np.array([(alpha.sum(0) @ pixel), (alpha.sum(1) @ pixel)]) / area
    radius = {shape: np.array([np.sqrt(area / unit_area(shape))]) for shape in SHAPES}

    def misfit(shape: str) -> float:
        ideal = coverage(shape, radius[shape], centre[None], len(image))[0]
        return float(np.abs(ideal - alpha).sum() / (unit_perimeter(shape) * radius[shape][0]))

    error = {shape: misfit(shape) for shape in SHAPES}
    shape, other = sorted(error, key=error.__getitem__)[:2]
    clear = error[shape] < min(SHAPE_ERROR, SHAPE_MARGIN * error[other])
    signed = signed_distance(shape, radius[shape], centre[None], len(image))
    region = ndimage.binary_dilation(alpha > 0, iterations=1) & ~others

    def difference(texture: str) -> float:
        phases = PHASES if texture == "striped" else PHASES[:1]
        cover, bright = paint_amount(texture, np.repeat(signed, len(phases), 0), phases)
        drawn = ground + cover[..., None] * (bright[..., None] * paint - ground)
        return float((np.abs(drawn - image)[:, region].mean(-1).sum(-1) / area).min() / 255)

    fit = {texture: difference(texture) for texture in TEXTURES}
    texture, second = sorted(fit, key=fit.__getitem__)[:2]
    same = fit[texture] < min(TEXTURE_ERROR, TEXTURE_MARGIN * fit[second])
    return DetectedObject(
        texture=texture if same else "",
        colour=nearest(paint, COLOURS),
        shape=shape if clear else "",
        centre=(float(centre[0]), float(centre[1])),
    )


def detect_objects(image: np.ndarray) -> tuple[list[DetectedObject], str]:
    """Returns the objects in an image, (64, 64, 3) uint8, and its background ("" if it is not in the palette). Returns
    no objects if there are more than three."""
    image = image.astype(np.float64)
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    ground = np.median(border, axis=0)
    labels, count = ndimage.label(image.max(-1) - image.min(-1) > CHROMA, structure=np.ones((3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    kept = [k for k in range(1, count + 1) if sizes[k] >= SPECK]
    if not kept or len(kept) > 3:
        return [], nearest(ground, BACKGROUNDS)
    labels = np.where(np.isin(labels, kept), labels, 0)
    closest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    owner = labels[tuple(closest)]
    found = [measure_object(image, labels == k, owner != k, ground) for k in kept]
    return found, nearest(ground, BACKGROUNDS)


class ScenesChecker:
    """Implements `Checker` for captions of `dit.data.scenes`. Raises ValueError for any other caption, and for pictures
    of another size than those of the data."""

    def __call__(self, images: Tensor, captions: Sequence[str]) -> dict[str, np.ndarray]:
        height, width = images.shape[-2:]
        if (height, width) != (SIDE, SIDE):
            raise ValueError(
                f"the checker of scenes reads pictures of {SIDE}x{SIDE} pixels, and these are {width}x{height}; omit "
                f"prompt accuracy"
            )
        pictures = images.permute(0, 2, 3, 1).cpu().numpy()
        rows = [self._check(p, c) for p, c in zip(pictures, captions, strict=True)]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def _check(self, picture: np.ndarray, caption: str) -> dict[str, bool]:
        match = GRAMMAR.fullmatch(caption)
        if match is None:
            raise ValueError(
                f"{caption!r} is not a caption of the scenes data, so the checker cannot check it; write e.g. 'a "
                f"striped red star above a hollow blue circle on a grey background' or omit prompt accuracy"
            )
        parts = match.groups()
        expected = [part for part in (parts[0:3], parts[4:7], parts[8:11]) if part[0]]
        relations = [relation for relation in (parts[3], parts[7]) if relation]
        detected, ground = detect_objects(picture)
        names = ("texture", "colour", "shape")
        right = dict.fromkeys((*names, "relation"), False)
        for order in itertools.permutations(detected) if len(detected) == len(expected) else []:
            found = {
                name: all(getattr(o, name) == w[i] for o, w in zip(order, expected, strict=True))
                for i, name in enumerate(names)
            }
            found["relation"] = all(
                holds(r, order[0].centre, o.centre) for r, o in zip(relations, order[1:], strict=True)
            )
            right = max(right, found, key=lambda r: sum(r.values()))
        return right | {"background": ground == parts[11]}
