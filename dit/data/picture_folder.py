"""Anyone's pictures as they are, to be scored or to be measured against: a folder, captions or none."""

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
    """Pictures of files with their captions, decoded when they are needed: centre-cropped to `size` x `size`, or at
    their own size where that is None. kind: of the source, in its fingerprint."""

    def __init__(self, kind: str, root: Path, size: int | None, found: Sequence[Found]) -> None:
        self.root, self.size = root, size
        self.files = [file for file, *_ in found]
        self.captions = [caption for _, caption, _ in found]
        digest = hashlib.sha256(f"{kind} {size}".encode())
        for _, caption, seen in found:
            digest.update(seen.digest + hashlib.sha256(caption.encode()).digest())
        self.fingerprint = digest.hexdigest()[:16]  # changes when any file, any caption or the size does

    def __len__(self) -> int:
        return len(self.files)

    def images(self, index: np.ndarray) -> np.ndarray:
        with ThreadPoolExecutor() as pool:
            return np.stack(list(pool.map(lambda row: read(self.files[row], self.size), np.asarray(index))))


class PictureFolder(PictureFiles):
    """Every picture below `path`, by name, at its own size, or centre-cropped to `size` x `size`.

    Captions are those of a metadata.jsonl, a metadata.csv or of .txt files, "" where there are none. Pictures that
    cannot be read are left out; these, grey ones (read as RGB) and those with alpha (laid on white) are counted and
    named on stderr. Each file is read once to look at all of them, and decoded when it is needed. Raises ValueError
    where there are no pictures, and where they are of several sizes and no `size` is given.
    """

    def __init__(self, path: str | Path, size: int | None = None) -> None:
        root = Path(path)
        if not root.is_dir():
            raise ValueError(f"{path}: no such folder")
        if size is not None and size < 1:
            raise ValueError(f"size={size} must be at least 1")
        found = inspected(root, pictures_below(root))
        warn(root, [file for file, _, seen in found if seen.grey], "are grey, read as RGB")
        warn(root, [file for file, _, seen in found if seen.alpha], "have an alpha channel, laid on white")
        if not found:
            raise ValueError(f"{path}: there is no picture below it that can be read")
        sizes = Counter(seen.size for *_, seen in found)
        if size is None and len(sizes) > 1:
            some = ", ".join(f"{count} of {w}x{h}" for (w, h), count in sizes.most_common(4))
            raise ValueError(
                f"{path}: the pictures are of {len(sizes)} sizes ({some}{', ...' if len(sizes) > 4 else ''}), and must "
                f"be of one; give size={min(min(side) for side in sizes)} to crop and scale each to that square"
            )
        super().__init__("pictures", root, size, found)
