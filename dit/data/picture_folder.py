"""The pictures of a folder, with or without captions, to score or to score against."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from dit.data.listing import Found, inspected, pictures_below, warn
from dit.picture_files import read


class PictureFiles:
    """Picture files with captions, decoded on demand: centre-cropped to `size` x `size`, or at their own size if it is
    None. kind: the kind of source, which is part of the fingerprint."""

    def __init__(self, kind: str, root: Path, size: int | None, found: Sequence[Found]) -> None:
        self.root, self.size = root, size
        self.files = [file for file, *_ in found]
        self.captions = [caption for _, caption, _ in found]
        digest = hashlib.sha256(f"{kind} {size}".encode())
        for _, caption, picture in found:
            digest.update(picture.digest + hashlib.sha256(caption.encode()).digest())
        self.fingerprint = digest.hexdigest()[:16]  # depends on all files, all captions and the size

    def __len__(self) -> int:
        return len(self.files)

    def images(self, index: np.ndarray) -> np.ndarray:
        with ThreadPoolExecutor() as pool:
            return np.stack(list(pool.map(lambda row: read(self.files[row], self.size), np.asarray(index))))


class PictureFolder(PictureFiles):
    """Every picture below `path`, sorted by name, at its own size, or centre-cropped to `size` x `size`.

    Captions come from a metadata.jsonl, a metadata.csv or .txt files; pictures without one have "". Pictures that
    cannot be read are left out; these, grey ones (read as RGB) and those with alpha (composited on white) are counted
    and named on stderr. Each file is read once to inspect it, and decoded on demand. Raises ValueError if there are no
    pictures, or if they have several sizes and no `size` is given.
    """

    def __init__(self, path: str | Path, size: int | None = None) -> None:
        root = Path(path)
        if not root.is_dir():
            raise ValueError(f"{path}: no such folder")
        if size is not None and size < 1:
            raise ValueError(f"size={size} must be at least 1")
        found = inspected(root, pictures_below(root))
        warn(root, [file for file, _, picture in found if picture.grey], "are grey, read as RGB")
        warn(root, [file for file, _, picture in found if picture.alpha], "have an alpha channel, composited on white")
        if not found:
            raise ValueError(f"{path}: there is no picture below it that can be read")
        sizes = Counter(picture.size for *_, picture in found)
        if size is None and len(sizes) > 1:
            some = ", ".join(f"{count} of {w}x{h}" for (w, h), count in sizes.most_common(4))
            raise ValueError(
                f"{path}: the pictures have {len(sizes)} sizes ({some}{', ...' if len(sizes) > 4 else ''}), and must "
                f"have one; give size={min(min(side) for side in sizes)} to crop and scale each to that square"
            )
        super().__init__("pictures", root, size, found)
