"""Data sets of the library `datasets`: a folder saved by save_to_disk, or a name on the Hugging Face hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dit.data.provenance import Filter
from dit.data.rows import Row, indexed, inspected
from dit.data.source import Options, Source
from dit.data.splits import SPLIT_OF
from dit.data.tables import Columns, image_bytes
from dit.errors import first_line, shortened

BATCH = 256  # rows that are decoded at once while indexing


def library() -> Any:
    """Returns the module `datasets`. Raises ValueError if it is not installed."""
    try:
        import datasets
    except ImportError:
        raise ValueError("data=huggingface needs the library datasets: pip install dit[datasets]") from None
    return datasets


@dataclass(frozen=True)
class DatasetLayout:
    """A data set by the name or the folder `path` and the name of its configuration."""

    path: str
    name: str | None
    columns: Columns
    kind = "huggingface"

    @property
    def where(self) -> str:
        return f"data.path={self.path}"

    @cached_property
    def parts(self) -> dict[str, Any]:
        """The data set's own splits by name, without decoding images. Raises ValueError if it cannot be loaded."""
        datasets = library()
        try:
            if any(os.path.isfile(Path(self.path) / file) for file in ("dataset_dict.json", "state.json")):
                found = datasets.load_from_disk(self.path)
            else:
                found = datasets.load_dataset(self.path, self.name)
        except Exception as error:  # the library has many kinds, of the network, of files and of its own
            raise ValueError(
                f"{self.where} cannot be loaded by datasets: {shortened(first_line(error), 200)}; give the name of a "
                f"data set on the hub, or a folder written by save_to_disk"
            ) from None
        parts = dict(found) if isinstance(found, dict) else {"": found}
        for name, part in parts.items():
            image = self.columns.find(self.where, part.column_names).image
            parts[name] = part.cast_column(image, datasets.Image(decode=False))
        return parts

    def rows(self, cache_dir: str | None) -> list[Row]:
        found = []
        for number, (name, part) in enumerate(self.parts.items()):
            stats = [os.stat(file["filename"]) for file in part.cache_files]
            stamp = " ".join([part._fingerprint, *(f"{s.st_size} {s.st_mtime_ns}" for s in stats)])
            local = os.path.abspath(self.path) if os.path.isdir(self.path) else self.path
            container = f"{local} {self.name} {name} {self.columns}"
            for row in indexed(cache_dir, container, stamp, partial(self._rows_of, part)):
                row.name = f"{name}:{row.name}" if name else row.name
                row.place, row.split = (number, *row.place), SPLIT_OF.get(name)
                found.append(row)
        return found

    def _rows_of(self, part: Any) -> list[Row]:
        """Returns the rows of a split, whose place is the row's number."""
        columns = self.columns.find(self.where, part.column_names)
        classes = getattr(part.features.get(columns.label), "names", None) or []

        def row_of(numbered: tuple[int, dict[str, Any]]) -> Row:
            number, values = numbered
            image = values.pop(columns.image)
            row = columns.row(str(number), (number,), values, classes)
            if row.why:
                return row
            try:
                return inspected(row, bytes_of(image))
            except ValueError as error:
                row.why = str(error)
                return row

        rows: list[Row] = []
        with (
            ThreadPoolExecutor() as pool,
            tqdm(total=len(part), desc=f"indexing {self.path}", unit="image", leave=False, delay=1) as bar,
        ):
            numbered = enumerate(part)
            while batch := list(islice(numbered, BATCH)):
                rows += pool.map(row_of, batch)
                bar.update(len(batch))
        return rows

    def file(self, row: Row) -> str:
        return f"{self.path}:{row.name}"

    def read(self, row: Row) -> bytes:
        number, place = row.place
        part = list(self.parts.values())[number]
        image = self.columns.find(self.where, part.column_names).image
        try:
            return bytes_of(part[place][image])
        except ValueError as error:
            raise ValueError(f"cannot read the picture {self.file(row)}: {error}") from None

    def no_captions(self, template: str | None, images: int) -> str:
        return (
            f"none of its {images} rows has a caption; name its column with data.fields.text=NAME, give "
            f"data.template='a photo of *' with data.fields.label=NAME, or set data.captions=none"
        )


def bytes_of(image: Any) -> bytes:
    """Returns the bytes of an undecoded image: {"bytes": ..., "path": ...}. Raises ValueError if it has none."""
    data = image_bytes(image)
    path = image.get("path") if isinstance(image, dict) else None
    if data is not None:
        return data
    if not path:
        raise ValueError("it holds no image")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None


class HuggingFace(Source):
    """The rows of a data set of the library `datasets` (map-style), cropped to `size` x `size`, as a split.

    path: a folder written by save_to_disk, or a name on the hub; name: its configuration, if it has several. fields:
    the columns of {image, text, label}; null for the usual ones. Its splits train, validation and test are
    the splits. The other arguments are those of `dit.data.folder.Folder`. Raises ValueError if a split is empty, or if
    the library is not installed.
    """

    def __init__(
        self,
        path: str,
        size: int,
        split: str,
        name: str | None = None,
        fields: Mapping[str, str | None] | None = None,
        template: str | None = None,
        val_share: float = 0.05,
        captions: str = "auto",
        filter: Mapping[str, Any] | None = None,
        rules: Mapping[str, str] | None = None,
        max_broken: float | None = None,
        cache_dir: str | None = None,
    ) -> None:
        options = Options(template, val_share, captions, Filter.of(filter), max_broken, cache_dir)
        super().__init__(DatasetLayout(path, name, Columns.of(fields)), options, size, split, rules)
