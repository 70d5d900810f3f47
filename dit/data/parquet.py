"""Parquet files with a column of encoded images, as on the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dit.data.files_layout import FilesLayout
from dit.data.provenance import Filter
from dit.data.remote import attempt, open_file
from dit.data.rows import Row, inspected
from dit.data.source import Options, Source
from dit.data.tables import Columns, image_bytes
from dit.errors import first_line, shortened

BATCH = 256  # rows that are decoded at once while indexing
LOCK = Lock()


def classes_of(schema: pa.Schema, label: str | None) -> list[str]:
    """Returns the class names that HF datasets writes into a schema, or []."""
    try:
        return list(json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]["names"])
    except (KeyError, ValueError, TypeError):
        return []


def rows_of_file(url: str, where: str, columns: Columns) -> list[Row]:
    """Returns the rows of a file, whose places are the row group and the row in it."""
    rows: list[Row] = []
    try:
        with open_file(url) as stream, pq.ParquetFile(stream) as file:
            found = columns.find(where, file.schema_arrow.names)
            classes = classes_of(file.schema_arrow, found.label)
            for group in range(file.num_row_groups):
                place = 0
                for batch in file.iter_batches(BATCH, row_groups=[group]):
                    for values in batch.to_pylist():
                        rows.append(table_row(found, values, (group, place), classes, len(rows)))
                        place += 1
    except (pa.ArrowException, OSError) as error:
        why = shortened(first_line(error), 120)
        rows.append(Row("", why=f"the file is no parquet or was cut short: {why} after {len(rows)} rows"))
    return rows


def table_row(columns: Columns, values: dict[str, Any], place: tuple[int, int], classes: list[str], number: int) -> Row:
    """Returns the row of a table's values, with the properties of its image."""
    data = image_bytes(values.pop(columns.image))
    row = columns.row(f"{number}", place, values, classes)
    if row.why:
        return row
    if data is None:
        row.why = f"column {columns.image} holds no bytes of an image"
        return row
    return inspected(row, data)


@lru_cache(maxsize=4)
def row_group(url: str, group: int, image: str) -> pa.ChunkedArray:
    """Returns the images of a row group; the last four stay in memory."""

    def read() -> pa.ChunkedArray:
        with open_file(url) as stream, pq.ParquetFile(stream) as file:
            return file.read_row_group(group, columns=[image])[image]

    return attempt(url, read)


@lru_cache(maxsize=1024)
def image_column(url: str, where: str, columns: Columns) -> str:
    """Returns the name of the image column of a file."""
    with open_file(url) as stream, pq.ParquetFile(stream) as file:
        return columns.find(where, file.schema_arrow.names).image


@dataclass(frozen=True)
class ParquetLayout(FilesLayout):
    """Parquet files with these columns."""

    columns: Columns
    kind = "parquet"
    suffix, mark = ".parquet", ":"

    @property
    def settings(self) -> str:
        return f" {self.columns}"

    def rows_of(self, url: str) -> list[Row]:
        return rows_of_file(url, self.where, self.columns)

    def read(self, row: Row) -> bytes:
        number, group, place = row.place
        url = self.urls[number]
        with LOCK:  # threads that need the same row group read it once
            value = row_group(url, group, image_column(url, self.where, self.columns))[place].as_py()
        data = image_bytes(value)
        if data is None:
            raise ValueError(f"cannot read the picture {self.file(row)}: the file was changed after it was listed")
        return data

    def no_captions(self, template: str | None, images: int) -> str:
        return (
            f"none of its {images} rows has a caption; name its column with data.fields.text=NAME, give "
            f"data.template='a photo of *' with data.fields.label=NAME, or set data.captions=none"
        )


class Parquet(Source):
    """The rows of parquet files with encoded images, cropped to `size` x `size`, as a split.

    path: as for `dit.data.webdataset.WebDataset`. fields: the columns of {image, text, label}; null for the usual ones.
    The image column holds bytes, or {bytes, path} as in HF datasets; the other columns are provenance. Files with
    train, validation or test in their names are the splits. Reading in order is fast; a random access reads a whole row
    group, so train from cached latents, or write files with small row groups. The other arguments are those of
    `dit.data.folder.Folder`. Raises ValueError if a split is empty.
    """

    def __init__(
        self,
        path: str,
        size: int,
        split: str,
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
        super().__init__(ParquetLayout(path, Columns.of(fields)), options, size, split, rules)
