"""Picture files: the same decoding for training, editing and evaluation, and writing as PNG."""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dit.errors import first_line, shortened
from dit.files import write_atomic

FAULTS = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, struct.error, zlib.error,
          MemoryError, Image.DecompressionBombError)  # fmt: skip  # errors that Pillow raises for damaged files
GREY = ("1", "L", "LA", "La", "I", "F")
LONG = 4  # aspect ratio above which a picture is cropped before it is enlarged
RESIZE = {
    "adm": Image.Resampling.BICUBIC,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}
CROP = ("centre", "none")
IN_WORDS = {  # the rules on cards and in reports
    "adm": "halved with a box filter while at least twice too large, then scaled bicubically (adm)",
    "bicubic": "scaled once with Pillow's antialiased bicubic filter",
    "bilinear": "scaled once with Pillow's antialiased bilinear filter",
    "lanczos": "scaled once with Pillow's antialiased lanczos filter",
    "centre": "the largest centred part with the shape of the result",
    "none": "the whole picture, scaled to the shape of the result",
}
Size = int | tuple[int, int]  # the side of a square, or (width, height)


def size_text(size: Size) -> str:
    """Returns a size as text, width first: 768x512."""
    return f"{size}x{size}" if isinstance(size, int) else f"{size[0]}x{size[1]}"


warnings.simplefilter(
    "ignore", Image.DecompressionBombWarning
)  # above twice that size it is an error, which is reported


class UnreadablePicture(ValueError):
    """A file that cannot be decoded. why: the reason, without the file's name."""

    def __init__(self, path: str | Path, why: str) -> None:
        super().__init__(f"cannot read the picture {path}: {why}")
        self.why = why


@dataclass(frozen=True)
class Rules:
    """How a picture becomes one of another size.

    resize: "adm" halves with a box filter while it is twice too large and then scales bicubically, as ADM does for its
    published figures (Dhariwal and Nichol 2021, arXiv:2105.05233); "bicubic", "bilinear" and "lanczos" scale once with
    Pillow's antialiased filters, as torchvision and diffusers' training scripts do. crop: "centre" keeps the largest
    centred rectangle of the right shape, "none" scales the whole picture to that shape.
    """

    resize: str = "adm"
    crop: str = "centre"

    def __post_init__(self) -> None:
        if self.resize not in RESIZE:
            raise ValueError(f"data.resize={self.resize} is not one of {', '.join(RESIZE)}")
        if self.crop not in CROP:
            raise ValueError(f"data.crop={self.crop} is neither centre nor none")

    @property
    def in_words(self) -> dict[str, str]:
        """The rules as sentences for a card."""
        return {"resize": IN_WORDS[self.resize], "crop": IN_WORDS[self.crop]}

    def box(self, picture: tuple[int, int], size: Size) -> tuple[int, int, int, int]:
        """Returns the part of a picture (width, height) that is kept: left, top, width, height in its own pixels,
        rounded."""
        width, height = picture
        if self.crop == "none":
            return 0, 0, width, height
        wanted = (size, size) if isinstance(size, int) else size
        scale = max(wanted[0] / width, wanted[1] / height)
        kept = min(width, round(wanted[0] / scale)), min(height, round(wanted[1] / scale))
        return (width - kept[0]) // 2, (height - kept[1]) // 2, *kept


ADM = Rules()


@dataclass(frozen=True, slots=True)
class PictureFile:
    """Properties of a picture file. digest: SHA-256 of its bytes; size: (width, height) after the EXIF rotation; grey,
    alpha: whether it is greyscale or has transparency, which the conversion to RGB removes."""

    digest: bytes
    size: tuple[int, int]
    grey: bool
    alpha: bool


def refuse(path: str | Path, error: BaseException) -> NoReturn:
    """Raises UnreadablePicture for an error while reading."""
    if isinstance(error, UnreadablePicture):
        raise error
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise UnreadablePicture(path, f"it has more than {limit:,} pixels; make it smaller") from None
    if isinstance(error, UnidentifiedImageError) or not isinstance(error, OSError):
        raise UnreadablePicture(path, "it is not a picture, or broken") from None
    raise UnreadablePicture(path, error.strerror or f"it is broken: {shortened(first_line(error))}") from None


def raw_mode(picture: Image.Image) -> str:
    """Returns Pillow's raw mode of an opened file ("L;2", "I;16B"), or "" if there is none."""
    tiles = getattr(picture, "tile", None)
    args = tiles[0].args if tiles else ""
    return str(args[0] if isinstance(args, tuple) and args else args or "")


def check_range(path: str | Path, picture: Image.Image) -> None:
    """Raises UnreadablePicture if the file does not define the values of black and white."""
    kind = {"F": "floating-point", "I": "32-bit"}.get(picture.mode)
    if kind and (picture.mode, picture.format) != ("I", "PPM"):  # the header of PPM gives the largest value
        raise UnreadablePicture(path, f"its {kind} values may have any range; save it with 8 or 16 bits a channel")
    if picture.mode == "LAB":
        raise UnreadablePicture(path, "its colours are in Lab; save it as RGB")


def has_alpha(picture: Image.Image) -> bool:
    """Whether a picture has an alpha channel or a transparent colour."""
    return picture.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in picture.info


def inspect(path: Path) -> PictureFile:
    """Returns the properties of a picture file, as `inspect_bytes`."""
    try:
        return inspect_bytes(path.read_bytes(), path)
    except OSError as error:
        refuse(path, error)


def inspect_bytes(data: bytes, name: str | Path) -> PictureFile:
    """Returns the properties of the picture in the bytes of a file after a check of all of it: of a PNG by its
    checksums, which is fifty times faster than decoding, and of other formats by decoding. Raises UnreadablePicture,
    with the name, if `read` would."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            check_range(name, picture)
            grey = picture.mode in GREY or picture.mode.startswith("I;16")
            alpha, size = has_alpha(picture), picture.size
            if picture.format == "PNG" and "exif" not in picture.info:
                picture.verify()
            else:
                size = ImageOps.exif_transpose(picture).size
        return PictureFile(hashlib.sha256(data).digest(), size, grey, alpha)
    except FAULTS as error:
        refuse(name, error)


def read(path: str | Path, size: Size | None = None, rules: Rules = ADM) -> np.ndarray:
    """Returns a picture of a file at a size by the rules, or all of it if size is None: (3, H, W) uint8 RGB, rotated as
    in its EXIF. Alpha is composited on white, and 16-bit values are scaled to 8 bits.

    Raises UnreadablePicture, a ValueError with the file's name.
    """
    return _decode(path, path, size, rules)


def read_bytes(data: bytes, name: str, size: Size | None = None, rules: Rules = ADM) -> np.ndarray:
    """Returns the picture in the bytes of a file, as `read`; `name` names it in errors."""
    return _decode(io.BytesIO(data), name, size, rules)


def _decode(source: str | Path | IO[bytes], name: str | Path, size: Size | None, rules: Rules) -> np.ndarray:
    try:
        with Image.open(source) as file:
            check_range(name, file)
            raw = raw_mode(file)
            picture = to_rgb(ImageOps.exif_transpose(file), raw)
        if size is not None:
            picture = resized(picture, size, rules)
        return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))
    except FAULTS as error:
        refuse(name, error)


def to_rgb(picture: Image.Image, raw: str) -> Image.Image:
    """Returns a picture as RGB, alpha composited on white. raw: the `raw_mode` of the file before decoding."""
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
    if clear is not None and raw == "RGB;16B":  # Pillow keeps only the high bytes
        picture.info["transparency"] = tuple(value >> 8 for value in clear)
    return on_white(picture) if has_alpha(picture) else picture.convert("RGB")


def on_white(picture: Image.Image) -> Image.Image:
    """Returns a picture composited on white, as RGB."""
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def resized(picture: Image.Image, size: Size, rules: Rules = ADM) -> Image.Image:
    """Returns a picture at a size, (width, height) or the side of a square, by the rules.

    Of a long picture that has to be enlarged, only the centre is enlarged, because the rest would need gigabytes. The
    result is the same up to rounding between Pillow's two passes.
    """
    wanted = (size, size) if isinstance(size, int) else size
    if rules.resize == "adm":
        while picture.width >= 2 * wanted[0] and picture.height >= 2 * wanted[1]:
            picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    if rules.crop == "none":
        return picture.resize(wanted, RESIZE[rules.resize])
    scale = max(wanted[0] / picture.width, wanted[1] / picture.height)
    width, height = round(picture.width * scale), round(picture.height * scale)
    left, top = (width - wanted[0]) // 2, (height - wanted[1]) // 2
    if scale > 1 and (width > LONG * wanted[0] or height > LONG * wanted[1]):
        x, y = picture.width / width, picture.height / height
        box = (left * x, top * y, (left + wanted[0]) * x, (top + wanted[1]) * y)
        return picture.resize(wanted, RESIZE[rules.resize], box=box)
    picture = picture.resize((width, height), RESIZE[rules.resize])
    return picture.crop((left, top, left + wanted[0], top + wanted[1]))


def png(image: Image.Image) -> bytes:
    """Returns the content of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def save_png(image: Image.Image, path: Path) -> None:
    """Writes a PNG file atomically."""
    write_atomic(path, png(image))
