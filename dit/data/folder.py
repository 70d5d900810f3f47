"""Anyone's own pictures: a folder, with captions as HF `imagefolder`, as text files, or from class folders."""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
BROKEN_PICTURE = (
    UnidentifiedImageError,
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def has_alpha(picture: Image.Image) -> bool:
    return picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info


def centre_crop(picture: Image.Image, size: int) -> Image.Image:
    """size x size, as ADM crops ImageNet, whose published figures are made with it (Dhariwal and Nichol 2021,
    arXiv:2105.05233): halved by boxes while twice too large, then bicubic to the short side, then the middle."""
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return picture.crop((left, top, left + size, top + size))


def load(path: Path, size: int | None) -> np.ndarray:
    """The largest centred square of a picture, size x size, or all of it where size is None: (3, H, W) uint8 RGB, as
    its EXIF turns it. Alpha is laid on white."""
    with Image.open(path) as file:
        picture: Image.Image = ImageOps.exif_transpose(file)
        if has_alpha(picture):
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        if picture.mode.startswith("I;16"):  # Pillow would clip it to 255
            picture = Image.fromarray((np.asarray(picture) / 257).round().astype(np.uint8))
        picture = picture.convert("RGB")
        if size is not None:
            picture = centre_crop(picture, size)
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


def captions_of_metadata(file: Path) -> dict[Path, str]:
    """metadata.jsonl of HF `imagefolder`: a line {"file_name": ..., "text": ...} for each picture."""
    captions = {}
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, text = row["file_name"], row.get("text", row.get("caption"))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
            raise ValueError(f'{file} line {number}: expected {{"file_name": ..., "text": ...}}') from None
        if isinstance(text, str) and text.strip():
            captions[(file.parent / name).resolve()] = text.strip()
    return captions


@dataclass(frozen=True)
class Picture:
    """A picture that can be read, its caption, and a hash of its pixels at the size that was asked for."""

    file: Path
    caption: str
    digest: bytes


def tell(root: Path, files: list[Path], what: str) -> None:
    if files:
        names = ", ".join(str(f.relative_to(root)) for f in files[:5]) + (", ..." if len(files) > 5 else "")
        print(f"warning: {len(files)} pictures below {root} {what}: {names}", file=sys.stderr)


def pictures_below(root: Path) -> Iterator[tuple[Path, str]]:
    """Every picture below a folder, by name, with its line in a metadata.jsonl or the .txt file beside it, else ""."""
    described: dict[Path, str] = {}
    for file in sorted(root.rglob("metadata.jsonl")):
        described |= captions_of_metadata(file)
    for file in sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES):
        text = file.with_suffix(".txt")
        if file.resolve() in described:
            yield file, described[file.resolve()]
        elif text.is_file():
            yield file, text.read_text(encoding="utf-8", errors="replace").strip()
        else:
            yield file, ""


def captioned(root: Path, template: str | None) -> Iterator[tuple[Path, str]]:
    """Every picture below a folder that has a caption; the others are told on stderr."""
    bare = []
    for file, caption in pictures_below(root):
        if caption:
            yield file, caption
        elif template is not None and file.parent != root:
            name = file.parent.name.replace("_", " ")
            yield file, template.replace("{}", name).replace("*", name)
        else:
            bare.append(file)
    tell(root, bare, "have no caption and are left out")


@cache
def scan(root: Path, size: int, template: str | None) -> list[Picture]:
    """Decodes every captioned picture once, so that training never meets a broken one. Both splits share the work."""

    def look(item: tuple[Path, str]) -> Picture | None:
        try:
            return Picture(*item, hashlib.sha256(load(item[0], size).tobytes()).digest())
        except BROKEN_PICTURE:
            return None

    items = list(captioned(root, template))
    with ThreadPoolExecutor() as pool:
        found = list(tqdm(pool.map(look, items), total=len(items), desc=f"reading {root}", unit="image", leave=False))
    broken = [file for (file, _), picture in zip(items, found, strict=True) if picture is None]
    tell(root, broken, "cannot be read and are left out")
    return [picture for picture in found if picture is not None]


class Folder:
    """Pictures below `path`, centre-cropped to `size` x `size`, as the `train` or the `val` split.

    A caption is, in this order, the picture's line in a metadata.jsonl, the .txt file beside it, or `template` with
    {} or * (which a command line need not quote) replaced by the name of the class folder it lies in. Pictures that
    cannot be read or have no caption are left out, counted and named on stderr. `val_share` of the pictures, by a hash
    of their content, are the held-out split: two copies of one picture are never on both sides, and adding pictures
    moves none.
    """

    def __init__(self, path: str, size: int, split: str, template: str | None = None, val_share: float = 0.05) -> None:
        if split not in ("train", "val"):
            raise ValueError(f"split={split!r} is neither 'train' nor 'val'")
        if not 0 < val_share < 1:
            raise ValueError(f"val_share={val_share} must lie between 0 and 1")
        if template is not None and "{}" not in template and "*" not in template:
            raise ValueError(f"data.template={template!r} must hold a * (or {{}}) where the class name goes")
        self.root, self.size = Path(path), size
        if not self.root.is_dir():
            raise ValueError(f"data.path={path}: no such folder")
        pictures = scan(self.root, size, template)
        if not pictures:
            raise ValueError(
                f"data.path={path}: no captioned picture found; add metadata.jsonl, a .txt beside each picture, or "
                f"class folders with data.template='a photo of a *'"
            )
        held_out = val_share * 2**64
        mine = [p for p in pictures if (int.from_bytes(p.digest[:8], "big") < held_out) == (split == "val")]
        if not mine:
            raise ValueError(f"data.path={path}: the {split} split is empty; add pictures or change data.val_share")
        self.files, self.captions = [p.file for p in mine], [p.caption for p in mine]
        whole = hashlib.sha256(f"folder 2 {size}".encode())
        for picture in mine:
            whole.update(picture.digest + picture.caption.encode())
        self.fingerprint = whole.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.files)

    def images(self, index: np.ndarray) -> np.ndarray:
        return np.stack([load(self.files[i], self.size) for i in np.asarray(index)])
