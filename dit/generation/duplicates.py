"""Near duplicates: of earlier pictures, and of training pictures, by one of two distances."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Descriptions = NDArray[Any]  # (N, D): of N pictures, as a measure describes them

SHARE = 0.01  # of real pictures that may count as duplicates of others
QUERIES = 1000  # real pictures of a group whose nearest one is looked for


class Thumbnail:
    """The root mean square difference of 8 x 8 thumbnails, in grey levels: for small and for flat pictures too."""

    unit, most = "grey levels", 20.0
    nothing: ClassVar[Descriptions] = np.zeros((0, 192), np.uint8)

    def describe(self, images: np.ndarray) -> Descriptions:
        """Returns (N, 192) uint8 of (N, 3, H, W) uint8."""
        pictures = (Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))) for image in images)
        return np.stack([np.asarray(picture.resize((8, 8), Image.Resampling.BOX)).reshape(-1) for picture in pictures])

    def distances(self, one: Descriptions, many: Descriptions) -> np.ndarray:
        """Returns the distances (M,) of one picture (192,) to M others (M, 192)."""
        return np.sqrt(np.square(many.astype(np.float64) - one.astype(np.float64)).mean(1))


class Pdq:
    """The number of bits in which the PDQ hashes of two pictures differ, of 256: for photographs. Its authors call
    pictures the same up to 31 bits. The hash of a small or flat picture changes with a little noise."""

    unit, most = "bits", 31.0
    nothing: ClassVar[Descriptions] = np.zeros((0, 32), np.uint8)

    def describe(self, images: np.ndarray) -> Descriptions:
        """Returns the hashes (N, 32) uint8 of (N, 3, H, W) uint8. Raises ValueError if pdqhash is not installed."""
        try:
            import pdqhash
        except ImportError:
            raise ValueError(
                "PDQ hashes need pdqhash: pip install 'dit[serve]'; duplicates=thumbnail needs none"
            ) from None
        pictures = (np.ascontiguousarray(image.transpose(1, 2, 0)) for image in images)
        return np.packbits([pdqhash.compute(picture)[0].astype(bool) for picture in pictures], axis=1)

    def distances(self, one: Descriptions, many: Descriptions) -> np.ndarray:
        """Returns the distances (M,) of one picture (32,) to M others (M, 32)."""
        return np.bitwise_count(many ^ one).sum(1, dtype=np.float64)


Measure = Thumbnail | Pdq
MEASURES: dict[str, Callable[[], Measure]] = {"thumbnail": Thumbnail, "pdq": Pdq}


class Duplicates:
    """Finds near duplicates among pictures with one caption.

    real: the descriptions of training pictures by caption. If most of them share their caption with no other, captions
    are not classes, and all pictures are compared. threshold: the largest distance of a duplicate, or None for the
    largest one, up to the measure's own, at which at most 1 % of the real pictures are duplicates of others. Where more
    than 1 % have an equal neighbour, the measure cannot tell pictures apart, and no duplicate is found.
    """

    def __init__(self, measure: Measure, real: Mapping[str, Descriptions], threshold: float | None = None) -> None:
        shared = sum(len(group) for group in real.values() if len(group) > 1)
        self.measure, self.by_caption = measure, 2 * shared >= sum(map(len, real.values()))
        everything = {"": np.concatenate([measure.nothing, *real.values()])}
        self.real: Mapping[str, Descriptions] = dict(real) if self.by_caption else everything
        self.threshold = self.calibrated() if threshold is None else threshold

    def reason(self, one: Descriptions, caption: str, earlier: Sequence[Descriptions]) -> str:
        """Returns why a picture (D,) with this caption is a duplicate, or "". earlier: those of the caption that are
        kept."""
        nothing = self.measure.nothing
        kept = np.stack(earlier) if earlier else nothing
        trained = self.real.get(caption if self.by_caption else "", nothing)
        for kind, others, what in (
            ("duplicate", kept, "an earlier picture of the caption"),
            ("copy", trained, "a training picture"),
        ):
            nearest = self.measure.distances(one, others).min(initial=np.inf)
            if nearest <= self.threshold:
                return f"{kind}: {nearest:.3g} {self.measure.unit} from {what}"
        return ""

    def calibrated(self) -> float:
        """Returns the threshold of the real pictures."""
        nearest = np.sort([near for group in self.real.values() for near in self.nearest_of(group)])
        if not len(nearest):
            return self.measure.most
        first = nearest[int(SHARE * len(nearest))]  # the nearest that is no duplicate
        return float(min(self.measure.most, np.nextafter(first, -np.inf, dtype=np.float64)))

    def nearest_of(self, group: Descriptions) -> list[float]:
        """Returns the distances of the first pictures of a group to their nearest other picture."""
        found = []
        for place, one in enumerate(group[:QUERIES] if len(group) > 1 else ()):
            others = self.measure.distances(one, group)
            others[place] = np.inf
            found.append(float(others.min()))
        return found


def by_caption(captions: Sequence[str], described: Descriptions) -> dict[str, Descriptions]:
    """Returns the descriptions (N, D) of the pictures of each caption."""
    rows = defaultdict(list)
    for row, caption in enumerate(captions):
        rows[caption].append(row)
    return {caption: described[places] for caption, places in rows.items()}
