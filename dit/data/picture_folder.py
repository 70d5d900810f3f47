"""The pictures of a folder, with or without captions, to score or to score against."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from dit.data.folder import FolderLayout
from dit.data.listing import warn
from dit.data.source import Images, readable
from dit.picture_files import Size


@dataclass(frozen=True)
class PicturesLayout(FolderLayout):
    """Picture files below a folder that is not a data set to train on."""

    kind = "pictures"

    @property
    def where(self) -> str:
        return self.path


class PictureFolder(Images):
    """Every picture below `path`, sorted by name, at its own size, or centre-cropped to `size`.

    Captions come from a metadata.jsonl, .csv or .parquet or .txt files; pictures without one have "". Pictures that
    cannot be read are left out; these, grey ones (read as RGB) and those with alpha (composited on white) are counted
    and named on stderr. Each file is read once to inspect it, and decoded on demand. Raises ValueError if there are no
    pictures, or if they have several sizes and no `size` is given.
    """

    def __init__(self, path: str | Path, size: Size | None = None, cache_dir: str | None = None) -> None:
        root = Path(path)
        if not root.is_dir():
            raise ValueError(f"{path}: no such folder")
        if isinstance(size, int) and size < 1:
            raise ValueError(f"size={size} must be at least 1")
        layout = PicturesLayout(str(path))
        rows = readable(layout, layout.rows(cache_dir), None)
        pictures = {row.name: row.picture for row in rows if row.picture is not None}
        warn(path, [name for name, picture in pictures.items() if picture.grey], "are grey, read as RGB")
        warn(path, [name for name, p in pictures.items() if p.alpha], "have an alpha channel, composited on white")
        sizes = Counter(picture.size for picture in pictures.values())
        if size is None and len(sizes) > 1:
            some = ", ".join(f"{count} of {w}x{h}" for (w, h), count in sizes.most_common(4))
            raise ValueError(
                f"{path}: the pictures have {len(sizes)} sizes ({some}{', ...' if len(sizes) > 4 else ''}), and must "
                f"have one; give size={min(min(side) for side in sizes)} to crop and scale each to that square, or "
                f"size=[WIDTH,HEIGHT]"
            )
        super().__init__(layout, rows, size)

    @property
    def files(self) -> list[Path]:
        return [Path(self.layout.file(row)) for row in self.rows]
