"""An invisible watermark in the luminance of a picture, and the test that finds it.

A secret key gives every block of 8 x 8 pixels a pattern of signs over its low frequencies. Embedding adds the pattern
to the block's discrete cosine transform; detection correlates the two. The blocks are those of JPEG, so that its
quantization acts on each frequency separately. A mark that is found is evidence, not proof: who has the key can embed
it, and who has many marked pictures can estimate the pattern.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.fft import dctn, idctn
from scipy.special import ndtr

SIDE = 8
ORDER = np.add.outer(np.arange(SIDE), np.arange(SIDE))
BAND = (ORDER >= 1) & (ORDER <= 6)  # the frequencies (u, v) of a block that are marked: 1 <= u + v <= 6
LUMINANCE = np.array([0.299, 0.587, 0.114])  # of R, G and B (ITU-R BT.601), as in JPEG
SCALE = 4.0  # coefficients of about this size count most in the test
SHORTEST = 16  # bytes of a key
FLIPS = {"": (), "left-right": (1,), "top-bottom": (0,), "both": (0, 1)}  # the axes that are mirrored


@dataclass(frozen=True)
class Detection:
    """p_value: the probability that a picture without the mark correlates so well with the key, corrected for the
    number of tests. tests: how many flips, positions and sizes were tried. flip, offset, resized: the best of them;
    offset is (top, left) in the picture as it was made; resized: whether the picture was first resized to that."""

    p_value: float
    tests: int
    flip: str = ""
    offset: tuple[int, int] = (0, 0)
    resized: bool = False


def read_key(path: str | Path) -> bytes:
    """Returns the content of a key file. Raises ValueError if it cannot be read or is shorter than 16 bytes."""
    try:
        key = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read the key {path}: {error.strerror or error}") from None
    if len(key) < SHORTEST:
        raise ValueError(
            f"the key {path} has {len(key)} bytes: it must have at least {SHORTEST}; "
            f"make one with: head -c 32 /dev/urandom > FILE"
        )
    return key


def pattern(key: bytes, rows: int, columns: int) -> np.ndarray:
    """Returns the signs of rows x columns blocks, (rows, columns, 8, 8) of -1, 0 and 1. They depend on a block's
    position alone, not on the size of the picture."""
    size = columns * SIDE * SIDE // 8
    prefixes = [b"dit watermark 1\0" + row.to_bytes(4, "big") for row in range(rows)]
    streams = [hashlib.shake_256(prefix + key).digest(size) for prefix in prefixes]
    bits = np.unpackbits(np.frombuffer(b"".join(streams), np.uint8)).reshape(rows, columns, SIDE, SIDE)
    return (2.0 * bits - 1.0) * BAND


def coefficients(luminance: np.ndarray) -> np.ndarray:
    """Returns the orthonormal DCT of the whole blocks of (H, W): (rows, columns, 8, 8)."""
    rows, columns = (side // SIDE for side in luminance.shape)
    whole = luminance[: rows * SIDE, : columns * SIDE]
    return dctn(whole.reshape(rows, SIDE, columns, SIDE).transpose(0, 2, 1, 3), axes=(2, 3), norm="ortho")


def check_size(width: int, height: int) -> None:
    """Raises ValueError unless a picture of this size has at least one block."""
    if min(width, height) < SIDE:
        raise ValueError(f"a picture of {width} x {height} pixels holds no watermark: each side needs {SIDE} or more")


def embed(picture: np.ndarray, key: bytes, amplitude: float) -> np.ndarray:
    """Returns the picture (H, W, 3) uint8 with the mark of a key: the same for the same picture and key.

    amplitude: root mean square of the change before rounding and clipping, in levels of 255. Pixels beyond the last
    whole block stay as they are. Raises ValueError if the picture is smaller than a block.
    """
    check_size(picture.shape[1], picture.shape[0])
    rows, columns = (side // SIDE for side in picture.shape[:2])
    change = amplitude * math.sqrt(BAND.size / BAND.sum()) * pattern(key, rows, columns)
    added = idctn(change, axes=(2, 3), norm="ortho").transpose(0, 2, 1, 3).reshape(rows * SIDE, columns * SIDE)
    marked = picture.astype(np.float64)
    marked[: rows * SIDE, : columns * SIDE] += added[..., None]
    return marked.clip(0, 255).round().astype(np.uint8)


def scores(luminance: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Returns the test statistics of (H, W) at all positions of its blocks in the pattern of a larger picture, or at
    one if it is as large.

    c / (SCALE^2 + c^2) of the coefficients c is the locally optimal detector of a sign in noise with heavy tails
    (Cauchy), so that a few strong edges do not decide. The signs of a key that has nothing to do with the picture are
    independent, so that the sum over signs, divided by the norm, is close to standard normal.
    """
    found = coefficients(luminance)
    weights = np.where(BAND, found / (SCALE**2 + found**2), 0.0)
    norm = math.sqrt(float((weights**2).sum()))
    shifts = signs.shape[0] - weights.shape[0] + 1, signs.shape[1] - weights.shape[1] + 1
    if norm == 0 or min(shifts) < 1:
        return np.zeros((max(shifts[0], 0), max(shifts[1], 0)))
    rows, columns = weights.shape[:2]
    places = [(i, j) for i in range(shifts[0]) for j in range(shifts[1])]
    sums = [float((weights * signs[i : i + rows, j : j + columns]).sum()) for i, j in places]
    return np.array(sums).reshape(shifts) / norm


def resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns a picture (H, W, 3) uint8 at a size (width, height), by Pillow's bicubic filter."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.BICUBIC))


def corrected(p_value: float, tests: int) -> float:
    """Returns 1 - (1 - p)^tests, the p-value of the smallest p of several tests (Sidak 1967): uniform without a mark if
    the tests are independent, and larger if they depend on each other, as for pictures that are nearly their own mirror
    images."""
    return -math.expm1(tests * math.log1p(-min(p_value, 1 - 1e-16)))


def detect(picture: np.ndarray, key: bytes, size: tuple[int, int] | None = None) -> Detection:
    """Tests whether a picture (H, W, 3) uint8 has the mark of a key, also mirrored.

    size: (width, height) that the picture had when it was made. If it has another one, it is tested resized to that,
    and, if it is smaller, as a part of that. The p-value is `corrected` for all tests. Raises ValueError if the picture
    or the size is smaller than a block.
    """
    height, width = picture.shape[:2]
    made_width, made_height = (width, height) if size is None else size
    check_size(width, height)
    check_size(made_width, made_height)
    whole = (made_width, made_height) == (width, height)
    best, where, tests = -math.inf, ("", (0, 0), False), 0
    for back in [False] if whole else [False, True]:
        searched = not whole and not back
        if searched and (made_width < width or made_height < height):
            continue  # enlarged, so that it is no part
        given = resized(picture, (made_width, made_height)) if back else picture
        signs, luminance = pattern(key, made_height // SIDE, made_width // SIDE), given.astype(np.float64) @ LUMINANCE
        for flip, axes in FLIPS.items():
            turned = np.flip(luminance, axes) if axes else luminance
            for top in range(SIDE if searched else 1):
                for left in range(SIDE if searched else 1):
                    part = turned[top:, left:]  # its first block begins at a multiple of 8 of the whole picture
                    if min(part.shape) < SIDE:
                        continue
                    found = scores(part, signs)
                    tests += found.size
                    if found.size and found.max() > best:
                        i, j = np.unravel_index(int(found.argmax()), found.shape)
                        best, where = float(found.max()), (flip, (int(i) * SIDE - top, int(j) * SIDE - left), back)
    return Detection(corrected(float(ndtr(-best)), tests), tests, *where)
