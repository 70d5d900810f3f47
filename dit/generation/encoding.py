"""Files of pictures, as PNG, JPEG or WebP, with what the table says of the picture and IPTC's fields as XMP."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import quoteattr

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from dit import __version__
from dit.generation.rows import array_of, flat
from dit.picture_files import read_bytes

SOURCES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
DESCRIPTION, SOFTWARE = 0x010E, 0x0131  # tags of EXIF
LARGEST_EXIF = 65500  # bytes that a JPEG holds
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    "Iptc4xmpExt:DigitalSourceType={source} Iptc4xmpExt:AISystemUsed={system}/></rdf:RDF></x:xmpmeta>"
)


def source_type(row: Mapping[str, Any]) -> str:
    """Returns IPTC's digital source type of a picture: trainedAlgorithmicMedia, or compositeWithTrainedAlgorithmicMedia
    if a part of a given picture is kept by a mask or a border."""
    edit = row.get("edit") or {}
    kept = "mask_sha256" in edit or any(edit.get("border", ()))
    return SOURCES + ("compositeWithTrainedAlgorithmicMedia" if kept else "trainedAlgorithmicMedia")


def xmp_of(row: Mapping[str, Any]) -> str:
    """Returns IPTC's DigitalSourceType and AISystemUsed of a picture as XMP."""
    system = f"dit {row.get('model', '')}".strip()
    return XMP.format(source=quoteattr(source_type(row)), system=quoteattr(system))


@dataclass(frozen=True)
class Encoding:
    """How pictures become files. kind: png, jpeg or webp; quality: of the last two, from 1 to 100."""

    kind: str = "png"
    quality: int = 95

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the pixels of the files."""
        return {"kind": self.kind} | ({} if self.kind == "png" else {"quality": self.quality})

    @property
    def suffix(self) -> str:
        return "jpg" if self.kind == "jpeg" else self.kind

    def pixels(self, picture: Tensor) -> Tensor:
        """Returns a picture (3, H, W) uint8 as it is read from its file: with the losses of JPEG and WebP."""
        return picture if self.kind == "png" else torch.from_numpy(read_bytes(self._saved(picture), "picture"))

    def file(self, picture: Tensor, row: Mapping[str, Any]) -> bytes:
        """Returns the file of a picture (3, H, W) uint8: a PNG has the row's fields as text chunks, a JPEG or WebP has
        the row as JSON in EXIF's ImageDescription. Raises ValueError if a row is too long for that."""
        if self.kind == "png":
            return png_of(picture, row)
        exif = Image.Exif()
        exif[DESCRIPTION], exif[SOFTWARE] = json.dumps(row), f"dit {__version__}"  # in ASCII, as EXIF demands
        if len(exif.tobytes()) > LARGEST_EXIF:
            raise ValueError(f"{row['name']}: its row is too long for a {self.kind} file: say encoding=png")
        return self._saved(picture, exif=exif, xmp=xmp_of(row).encode())

    def _saved(self, picture: Tensor, **fields: Any) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(array_of(picture)).save(buffer, self.kind.upper(), quality=self.quality, **fields)
        return buffer.getvalue()


PNG = Encoding()


def png_of(pixels: Tensor, row: Mapping[str, Any]) -> bytes:
    """Returns a PNG file of (3, H, W) uint8 whose text chunks are the row's fields."""
    info = PngInfo()
    info.add_text("Software", f"dit {__version__}")
    for name, value in flat(row).items():
        info.add_text(name, str(value))
    info.add_itxt("XML:com.adobe.xmp", xmp_of(row))
    buffer = io.BytesIO()
    Image.fromarray(array_of(pixels)).save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()
