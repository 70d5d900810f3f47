"""A folder of pictures, with captions as in HF `imagefolder`, in text files, from class folders, or without any."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dit.data.listing import pictures_below
from dit.data.provenance import Filter
from dit.data.rows import Row, index_file, inspected, load_rows, save_rows
from dit.data.source import Options, Source
from dit.data.splits import are_splits, split_of_folder

CHUNK = 1024  # pictures that are inspected at once
PAUSE = 60.0  # seconds between two writes of what is known


@dataclass(frozen=True)
class FolderLayout:
    """Picture files below a folder."""

    path: str
    kind = "folder"

    @property
    def where(self) -> str:
        return f"data.path={self.path}"

    def rows(self, cache_dir: str | None) -> list[Row]:
        root = Path(self.path)
        if not root.is_dir():
            raise ValueError(f"{self.where}: no such folder")
        rows = pictures_below(root)
        if not rows:
            raise ValueError(f"{self.where}: there is no picture below it")
        parts = [Path(row.name).parts for row in rows]
        tops = [split_of_folder(names[0]) if len(names) > 1 else None for names in parts]
        if are_splits(set(tops)):
            for row, split, names in zip(rows, tops, parts, strict=True):
                row.split = split
                row.label = row.label if split is None or len(names) > 2 else ""  # a split is not a class
        return inspect_files(root, rows, cache_dir)

    def file(self, row: Row) -> str:
        return str(Path(self.path) / row.name)

    def read(self, row: Row) -> bytes:
        try:
            return Path(self.file(row)).read_bytes()
        except OSError as error:
            raise ValueError(f"cannot read the picture {self.file(row)}: {error.strerror}") from None

    def no_captions(self, template: str | None, images: int) -> str:
        if template is not None:
            return (
                f"data.template={template!r} takes captions from the names of class folders, and the {images} pictures "
                f"are in no class folder; move each class into its own folder, add metadata.jsonl or a .txt beside "
                f"each picture, or train without captions with experiment=folder_unconditional"
            )
        return (
            f"none of its {images} pictures has a caption; add metadata.jsonl, .csv or .parquet, or a .txt beside "
            f"each, give data.template='a photo of *' if they are in class folders, or train without captions with "
            f"experiment=folder_unconditional"
        )


def inspect_files(root: Path, rows: Sequence[Row], cache_dir: str | None) -> list[Row]:
    """Returns the rows of picture files with their properties. What is known of a file by its name, size and time is
    not read again; what is new is kept for the next start, also if the process is killed meanwhile."""
    file = None if cache_dir is None else index_file(cache_dir, str(root.absolute()))
    known = {(row.name, row.place): row for row in (load_rows(file, "") or [] if file else [])}
    new = []
    for row in rows:
        if row.why:
            continue
        try:
            status = os.stat(f"{root}/{row.name}")
        except OSError as error:
            row.why = error.strerror or str(error)
            continue
        row.place = (status.st_size, status.st_mtime_ns)
        if (before := known.get((row.name, row.place))) is not None:
            row.picture, row.why = before.picture, before.why
        else:
            new.append(row)
    if new:
        inspect_new(root, new, [row for row in rows if row.place], file)
    return list(rows)


def inspect_new(root: Path, new: Sequence[Row], listed: Sequence[Row], file: Path | None) -> None:
    """Inspects files, and writes what is known of all listed ones from time to time."""

    def inspect(row: Row) -> Row:
        try:
            return inspected(row, (root / row.name).read_bytes())
        except OSError as error:
            row.why, row.place = error.strerror or str(error), ()  # may be readable at the next start
            return row

    def save() -> None:
        if file is not None:
            known = [Row(r.name, r.place, picture=r.picture, why=r.why) for r in listed if r.place]
            save_rows(file, "", [row for row in known if row.picture is not None or row.why])

    saved = time.monotonic()
    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=len(new), desc=f"reading {root}", unit="image", leave=False, delay=1) as bar,
    ):
        for first in range(0, len(new), CHUNK):
            for _ in pool.map(inspect, new[first : first + CHUNK]):
                bar.update()
            if time.monotonic() - saved > PAUSE:
                save()
                saved = time.monotonic()
    save()


class Folder(Source):
    """Pictures below `path`, cropped to `size` x `size`, as the `train`, the `val` or the `test` split.

    The captions of a picture are the first of: those of its row in a metadata.jsonl, .csv or .parquet, the .txt file
    beside it, and `template` with {} or * (which needs no quotes in a shell) replaced by the name of the class folder.
    With captions="none", all pictures are used and each has the caption "". Pictures that cannot be read or have no
    caption are left out, counted and named on stderr.

    Folders train, validation and test (or other names that HF gives them) directly below `path` are the splits.
    Otherwise the held-out split is the share `val_share` of the pictures, chosen by a hash of the bytes of each file:
    it is the same for every size, copies of a file are in the same split, and new pictures do not change the split of
    others. filter: see `dit.data.provenance.Filter`; rules: see `dit.picture_files.Rules`. cache_dir: where it is kept
    what is known of the files; None reads all of them again. Raises ValueError if a split is empty.
    """

    def __init__(
        self,
        path: str,
        size: int,
        split: str,
        template: str | None = None,
        val_share: float = 0.05,
        captions: str = "auto",
        filter: Mapping[str, Any] | None = None,
        rules: Mapping[str, str] | None = None,
        max_broken: float | None = None,
        cache_dir: str | None = None,
    ) -> None:
        options = Options(template, val_share, captions, Filter.of(filter), max_broken, cache_dir)
        super().__init__(FolderLayout(path), options, size, split, rules)

    @property
    def files(self) -> list[Path]:
        return [Path(self.layout.file(row)) for row in self.rows]
