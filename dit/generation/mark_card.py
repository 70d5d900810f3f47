"""The card of a watermark: how often it is found in a model's pictures after what happens to pictures."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from dit.files import read_json
from dit.generation.encoding import PNG, Encoding
from dit.generation.marks import Mark, Origin
from dit.generation.watermark import resized
from dit.picture_files import size_text

FORMAT = 1
LEAST = 0.9  # the lower end of the interval of the share that is found in the files as they are delivered
DELIVERED = "as delivered"
SEEDS = 100  # that are tried for a mark in the noise when the seed and the prompt are not known
UNKNOWN = f"one of {SEEDS} seeds, without the prompt"
Change = Callable[[np.ndarray], np.ndarray]  # of a picture (H, W, 3) uint8


def jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    """Returns a picture after JPEG with Pillow's colour subsampling."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def scaled(picture: np.ndarray, factor: float) -> np.ndarray:
    """Returns a picture with its sides times a factor, rounded."""
    height, width = picture.shape[:2]
    return resized(picture, (round(width * factor), round(height * factor)))


def cropped(picture: np.ndarray) -> np.ndarray:
    """Returns the middle of a picture, three quarters of each side."""
    height, width = picture.shape[:2]
    return picture[height // 8 : height - height // 8, width // 8 : width - width // 8]


CHANGES: dict[str, Change] = {
    DELIVERED: lambda picture: picture,
    **{f"jpeg {quality}": partial(jpeg, quality=quality) for quality in (95, 75, 50)},
    "resized to 75 %": partial(scaled, factor=0.75),
    "resized to 150 %": partial(scaled, factor=1.5),
    "cropped to 75 %": cropped,
}


def psnr(before: np.ndarray, after: np.ndarray) -> float:
    """Returns the peak signal-to-noise ratio of pictures uint8 in dB, infinite if they are equal."""
    error = float(np.mean((before.astype(np.float64) - after) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def p_values(mark: Mark, picture: np.ndarray, origin: Origin) -> dict[str, float]:
    """Returns the p-values of a marked picture after each of CHANGES, all tested with the origin that it has; for a
    mark in the noise also that of a test that tries many seeds, without the prompt."""
    size = picture.shape[1], picture.shape[0]
    found = {name: mark.detect(change(picture), size, origin).p_value for name, change in CHANGES.items()}
    if mark.in_noise:
        [seed] = origin.seeds
        less = replace(origin, prompt=None, seeds=range(seed, seed + SEEDS))
        found[UNKNOWN] = mark.detect(picture, size, less).p_value
    return found


def read_card(file: str) -> dict[str, Any]:
    """Returns the content of a card's file. Raises ValueError if it is not one."""
    held = read_json(file)
    if not is_card(held):
        raise ValueError(f"{file} is not a card of a watermark of this version; {REMEDY}")
    return held


def is_card(held: Any) -> bool:
    """Whether a value has the form of a card: all that `demand_power` reads."""
    try:
        powers = [entry["power"][DELIVERED] for entry in held["entries"]]
        numbers = [number for power in powers for number in (power["share"], *power["interval"])]
        fields = [{"weights", "recipe", "size", "encoding"} <= entry.keys() for entry in held["entries"]]
    except (KeyError, TypeError, AttributeError):
        return False
    ranges = [isinstance(number, int | float) and 0 <= number <= 1 for number in numbers]
    return held.get("format") == FORMAT and all(fields) and all(ranges) and len(numbers) == 3 * len(powers)


REMEDY = "measure it: the same command with marks.card=FILE and measure=200 writes the card"


def plainly(value: Any) -> Any:
    """Returns a value as JSON gives it back."""
    return json.loads(json.dumps(value))


def demand_power(mark: Mark, about: Mapping[str, Any], size: tuple[int, int], encoding: Encoding = PNG) -> None:
    """Raises ValueError unless the card of a mark shows that it is found in files of this encoding of a model's
    pictures of a size (width, height): the lower end of the 95 % interval of the share must be at least 0.9."""
    if mark.card is None:
        raise ValueError(
            f"marks={mark.kind}: how often the mark is found in pictures of this model is not known; {REMEDY}"
        )
    if mark.in_noise and (about.get("recipe") is None or about.get("edit") is not None):
        which = "edited pictures" if about.get("edit") else "the server, whose requests choose their recipe"
        raise ValueError(f"marks={mark.kind} cannot be used for {which}: choose marks=pattern")
    card, where = read_card(mark.card), f"{about['model']} at {size_text(size)}"
    if card.get("mark") != mark.settings:
        raise ValueError(f"marks.card={mark.card} is of the mark {card.get('mark')}, not of {mark.settings}; {REMEDY}")
    bound = ("weights", "recipe") if mark.in_noise else ("weights",)
    fitting = [
        entry
        for entry in card["entries"]
        if (entry["size"], entry["encoding"]) == (list(size), encoding.settings)
        and all(entry[name] == plainly(about.get(name)) for name in bound)
    ]
    files = " ".join(map(str, encoding.settings.values()))
    if not fitting:
        what = "weights, recipe and size" if mark.in_noise else "weights and size"
        raise ValueError(f"marks.card={mark.card} has no entry with the {what} of {where} in {files} files; {REMEDY}")
    found = fitting[0]["power"][DELIVERED]
    low, high = found["interval"]
    if low < LEAST:
        known = " with the prompt and the seed" if mark.in_noise else ""
        stronger = "a larger marks.amplitude, " if "amplitude" in mark.settings else ""
        raise ValueError(
            f"marks={mark.kind} is refused for {where}: in {files} files a share of {found['share']:.3f} [{low:.3f}, "
            f"{high:.3f}] is found{known} at a false-alarm rate of {mark.rate:g}, and the lower end must be at least "
            f"{LEAST}: choose {stronger}another mark, more pictures for the card, or marks=null"
        )
