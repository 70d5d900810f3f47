"""Anyone's pictures as they are, to be scored or to be measured against: a folder, captions or none."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from dit.data.folder import BROKEN_PICTURE, has_alpha, load, pictures_below, tell


@dataclass(frozen=True)
class Seen:
    """What is known of a whole picture: a hash of its file, (width, height), and what reading it as RGB changes."""

    digest: bytes
    size: tuple[int, int]
    grey: bool
    alpha: bool


def look(file: Path) -> Seen | None:
    """None where the picture is broken. A PNG's checksums tell that fifty times faster than decoding it; what has none
    is decoded."""
    try:
        data = file.read_bytes()
        with Image.open(io.BytesIO(data)) as picture:
            grey = picture.mode in ("1", "L", "LA", "I", "F") or picture.mode.startswith("I;16")
            alpha, size = has_alpha(picture), picture.size
            if picture.format == "PNG" and "exif" not in picture.info:
                picture.verify()
            else:
                size = ImageOps.exif_transpose(picture).size
        return Seen(hashlib.sha256(data).digest(), size, grey, alpha)
    except BROKEN_PICTURE:
        return None


class PictureFolder:
    """Every picture below `path`, by name, at its own size, or centre-cropped to `size` x `size`.

    Captions are those of a metadata.jsonl or of .txt files, "" where there are none. Broken pictures are left out;
    these, grey ones (read as RGB) and those with alpha (laid on white) are counted and named on stderr. Each file is
    read once to look at all of them, and decoded when it is asked for. Raises ValueError where there are no pictures,
    and where they are of several sizes and no `size` is given.
    """

    def __init__(self, path: str | Path, size: int | None = None) -> None:
        self.root, self.size = Path(path), size
        if not self.root.is_dir():
            raise ValueError(f"{path}: no such folder")
        if size is not None and size < 1:
            raise ValueError(f"size={size} must be at least 1")
        items = list(pictures_below(self.root))
        with ThreadPoolExecutor() as pool:
            files = pool.map(look, [file for file, _ in items])
            found = list(tqdm(files, total=len(items), desc=f"reading {path}", unit="image", leave=False))
        whole = [(*item, seen) for item, seen in zip(items, found, strict=True) if seen is not None]
        tell(
            self.root,
            [item[0] for item, seen in zip(items, found, strict=True) if seen is None],
            "are broken, left out",
        )
        tell(self.root, [file for file, _, seen in whole if seen.grey], "are grey, read as RGB")
        tell(self.root, [file for file, _, seen in whole if seen.alpha], "have an alpha channel, laid on white")
        if not whole:
            raise ValueError(f"{path}: there is no picture below it that can be read")
        sizes = Counter(seen.size for *_, seen in whole)
        if size is None and len(sizes) > 1:
            told = ", ".join(f"{count} of {w}x{h}" for (w, h), count in sizes.most_common(4))
            raise ValueError(
                f"{path}: the pictures are of {len(sizes)} sizes ({told}{', ...' if len(sizes) > 4 else ''}), and must "
                f"be of one; give size={min(min(side) for side in sizes)} to crop and scale each to that square"
            )
        self.files = [file for file, *_ in whole]
        self.captions = [caption for _, caption, _ in whole]
        digest = hashlib.sha256(f"pictures 1 {size}".encode())
        for _, caption, seen in whole:
            digest.update(seen.digest + hashlib.sha256(caption.encode()).digest())
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.files)

    def images(self, index: np.ndarray) -> np.ndarray:
        def read(row: int) -> np.ndarray:
            try:
                return load(self.files[row], self.size)
            except BROKEN_PICTURE as error:
                raise ValueError(f"{self.files[row]} cannot be decoded ({error}); take it away or mend it") from None

        with ThreadPoolExecutor() as pool:
            return np.stack(list(pool.map(read, np.asarray(index))))
