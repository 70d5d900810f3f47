"""Picture files: the one reading for training, editing and evaluation, and writing as PNG."""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dit.errors import first_line, shortened
from dit.files import write_atomic

FAULTS = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, struct.error, zlib.error,
          MemoryError, Image.DecompressionBombError)  # fmt: skip  # what Pillow raises for files that are damaged
GREY = ("1", "L", "LA", "La", "I", "F")
LONG = 4  # times its width: pictures longer than that are cropped before they are enlarged

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # twice that size is an error, and is reported


class UnreadablePicture(ValueError):
    """A file that gives no pixels. why: the reason alone, without the file's name."""

    def __init__(self, path: str | Path, why: str) -> None:
        super().__init__(f"cannot read the picture {path}: {why}")
        self.why = why


@dataclass(frozen=True)
class PictureFile:
    """What is known of a picture before it is decoded. digest: SHA-256 of the file's bytes; size: (width, height), as
    EXIF turns it; grey, alpha: whether reading it as RGB changes it."""

    digest: bytes
    size: tuple[int, int]
    grey: bool
    alpha: bool


def refuse(path: str | Path, error: BaseException) -> NoReturn:
    """Raises UnreadablePicture for what went wrong while reading."""
    if isinstance(error, UnreadablePicture):
        raise error
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise UnreadablePicture(path, f"it has more than {limit:,} pixels; make it smaller") from None
    if isinstance(error, UnidentifiedImageError) or not isinstance(error, OSError):
        raise UnreadablePicture(path, "it is no picture, or broken") from None
    raise UnreadablePicture(path, error.strerror or f"it is broken: {shortened(first_line(error))}") from None


def raw_mode(picture: Image.Image) -> str:
    """How the pixels lie in an opened file, in Pillow's words ("L;2", "I;16B"); "" where Pillow does not say."""
    tiles = getattr(picture, "tile", None)
    args = tiles[0].args if tiles else ""
    return str(args[0] if isinstance(args, tuple) and args else args or "")


def check_range(path: str | Path, picture: Image.Image) -> None:
    """Raises UnreadablePicture for a picture whose black and white its file does not give."""
    kind = {"F": "floating-point", "I": "32-bit"}.get(picture.mode)
    if kind and (picture.mode, picture.format) != ("I", "PPM"):  # whose header gives its largest value
        raise UnreadablePicture(path, f"its {kind} values may have any range; save it with 8 or 16 bits a channel")
    if picture.mode == "LAB":
        raise UnreadablePicture(path, "its colours are in Lab; save it as RGB")


def has_alpha(picture: Image.Image) -> bool:
    return picture.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in picture.info


def inspect(path: Path) -> PictureFile:
    """Looks at a whole file. The checksums of a PNG show damage fifty times faster than decoding it; what has none is
    decoded. Raises UnreadablePicture where `read` would."""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as picture:
            check_range(path, picture)
            grey = picture.mode in GREY or picture.mode.startswith("I;16")
            alpha, size = has_alpha(picture), picture.size
            if picture.format == "PNG" and "exif" not in picture.info:
                picture.verify()
            else:
                size = ImageOps.exif_transpose(picture).size
        return PictureFile(hashlib.sha256(data).digest(), size, grey, alpha)
    except FAULTS as error:
        refuse(path, error)


def read(path: str | Path, size: int | None = None) -> np.ndarray:
    """The largest centred square of a picture, size x size, or all of it where size is None: (3, H, W) uint8 RGB, as
    its EXIF turns it. Alpha is laid on white, and values of 16 bits are scaled to 8.

    Raises UnreadablePicture, a ValueError that names the file.
    """
    try:
        with Image.open(path) as file:
            check_range(path, file)
            raw = raw_mode(file)
            picture = to_rgb(ImageOps.exif_transpose(file), raw)
        if size is not None:
            picture = centre_crop(picture, size)
        return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))
    except FAULTS as error:
        refuse(path, error)


def to_rgb(picture: Image.Image, raw: str) -> Image.Image:
    """raw: as from `raw_mode`, of the file before it was decoded."""
    clear = picture.info.get("transparency")  # the one colour of a PNG that is transparent, in the file's own values
    if picture.mode == "I" or picture.mode.startswith("I;16"):  # Pillow would clip it to 255
        values = np.asarray(picture)
        top = 4095 if raw == "I;12" else 65535
        grey = Image.fromarray((values * (255 / top)).round().clip(0, 255).astype(np.uint8))
        if clear is None:
            return grey.convert("RGB")
        return on_white(Image.merge("LA", (grey, Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))))
    if clear is not None and raw in ("L;2", "L;4"):
        picture.info["transparency"] = clear * {"L;2": 85, "L;4": 17}[raw]
    if clear is not None and raw == "RGB;16B":  # of which Pillow keeps the high bytes
        picture.info["transparency"] = tuple(value >> 8 for value in clear)
    return on_white(picture) if has_alpha(picture) else picture.convert("RGB")


def on_white(picture: Image.Image) -> Image.Image:
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def centre_crop(picture: Image.Image, size: int) -> Image.Image:
    """size x size, as ADM crops ImageNet, whose published figures are made with it (Dhariwal and Nichol 2021,
    arXiv:2105.05233): halved by boxes while twice too large, then bicubic to the short side, then the middle.

    Of a long picture that has to be enlarged, only the middle is: the rest would cost gigabytes and be cut off. The
    result is then the same up to rounding between Pillow's two passes.
    """
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    width, height = round(picture.width * scale), round(picture.height * scale)
    left, top = (width - size) // 2, (height - size) // 2
    if scale > 1 and max(width, height) > LONG * size:
        x, y = picture.width / width, picture.height / height
        box = (left * x, top * y, (left + size) * x, (top + size) * y)
        return picture.resize((size, size), Image.Resampling.BICUBIC, box=box)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return picture.crop((left, top, left + size, top + size))


def png(image: Image.Image) -> bytes:
    """The content of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def save_png(image: Image.Image, path: Path) -> None:
    """Writes a PNG file whole."""
    write_atomic(path, png(image))
