"""The pictures below a folder, with what the files beside them say."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dit.data.captions import FIELDS, Captions, captions_of_row
from dit.data.rows import Properties, Row
from dit.errors import first_line, shortened
from dit.files import parse_json, read_lines, read_text

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
HIDDEN = ("__MACOSX", "@eaDir")  # folders that macOS and Synology create, besides names that begin with a dot
SHOWN = 5  # number of names in a warning


def files_below(root: Path) -> list[Path]:
    """Returns every file below a folder, sorted by name, without hidden files and folders. Follows links to folders,
    except to a folder that contains the link."""

    def walk(folder: Path, above: frozenset[str]) -> Iterator[Path]:
        real = os.path.realpath(folder)
        if real in above:
            return
        for entry in os.scandir(folder):
            if entry.name.startswith(".") or entry.name in HIDDEN:
                continue
            if entry.is_dir():
                yield from walk(folder / entry.name, above | {real})
            else:
                yield folder / entry.name

    return sorted(walk(root, frozenset()))


def rows_of(file: Path) -> Iterator[tuple[int, Any]]:
    """Yields the line numbers and rows of a metadata file. Raises ValueError if it is not JSON lines, or CSV or parquet
    with a column file_name."""
    if file.suffix == ".parquet":
        yield from enumerate(parquet_rows(file), start=1)
        return
    try:
        if file.suffix == ".csv":
            table = csv.DictReader(io.StringIO(read_text(file), newline=""))
            columns = table.fieldnames or []
            if "file_name" not in columns:
                found = shortened(", ".join(map(str, columns))) or "nothing"
                raise ValueError(f"{file}: its first line must name the columns file_name and text; it holds {found}")
            for row in table:
                yield table.line_num, row
        else:
            for number, line in enumerate(read_lines(file), start=1):
                if line.strip():
                    yield number, row_of(file, number, line)
    except csv.Error as error:
        raise ValueError(f"{file} cannot be read as CSV: {error}") from None


def parquet_rows(file: Path) -> list[Properties]:
    """Returns the rows of a parquet file. Raises ValueError if it cannot be read or has no column file_name."""
    try:
        table = pq.ParquetFile(file).read()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} cannot be read as parquet: {shortened(first_line(error), 100)}") from None
    if "file_name" not in table.column_names:
        found = shortened(", ".join(table.column_names)) or "nothing"
        raise ValueError(f"{file}: it must have the columns file_name and text; it has {found}")
    return table.to_pylist()


def row_of(file: Path, number: int, line: str) -> Any:
    """Returns the value of a line. Raises ValueError if it is not JSON."""
    try:
        return parse_json(line, str(file), nan=True)
    except ValueError:
        raise ValueError(f'{file} line {number}: expected {{"file_name": ..., "text": ...}}') from None


def rows_of_metadata(file: Path) -> dict[str, tuple[Captions, Properties]]:
    """Returns the captions and the other properties of each file_name in a metadata file of HF `imagefolder`."""
    found: dict[str, tuple[Captions, Properties]] = {}
    described = False
    for number, row in rows_of(file):
        name = row.get("file_name") if isinstance(row, dict) else None
        if not isinstance(name, str) or not name:
            raise ValueError(f'{file} line {number}: expected {{"file_name": ..., "text": ...}}')
        described = described or any(name in row for name in FIELDS)
        rest = {key: value for key, value in row.items() if key and key not in ("file_name", *FIELDS)}
        found[name] = captions_of_row(row, f"{file} line {number}"), rest
    if found and not described:
        print(f"warning: {file}: none of its {len(found)} rows has a text or a caption", file=sys.stderr)
    return found


def warn_of_rows(root: Path, file: Path, names: Sequence[str], rows: int) -> None:
    """Warns of rows of a metadata file that match no picture, with the correct path if it can be found."""
    if not names:
        return
    shown = ", ".join(repr(shortened(name)) for name in names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    remedy = ""
    for start in (root, file.parent.parent):
        if os.path.isfile(start / names[0]):
            right = os.path.relpath(start / names[0], file.parent)
            remedy = f"; file_name is relative to the folder of {file.name}: write {right!r}"
    print(f"warning: {len(names)} of {rows} rows of {file} match no picture: {shown}{remedy}", file=sys.stderr)


def described_below(root: Path, files: Sequence[Path], pictures: set[str]) -> dict[str, tuple[Captions, Properties]]:
    """Returns the metadata of all pictures that have some, by their paths. Warns of rows without a picture."""
    described: dict[str, tuple[Captions, Properties]] = {}
    for file in (file for file in files if file.name in METADATA):
        rows = rows_of_metadata(file)
        paths = {name: os.path.normpath(file.parent / name) for name in rows}
        warn_of_rows(root, file, [name for name in rows if paths[name] not in pictures], len(rows))
        for name, (captions, properties) in rows.items():
            described[paths[name]] = captions, {"caption_origin": file.name} | properties
    return described


def pictures_below(root: Path) -> list[Row]:
    """Returns every picture below a folder, sorted by name, with its captions: those of its row in a metadata file, or
    else of the .txt file beside it. Its label is the name of its folder. A picture whose .txt is not UTF-8 cannot be
    read, and the row says why.

    Raises ValueError if a metadata file is not UTF-8 or has another form.
    """
    files = files_below(root)
    pictures = {file: os.path.normpath(file) for file in files if file.suffix.lower() in SUFFIXES}
    described, texts = described_below(root, files, set(pictures.values())), set(files)
    rows = []
    for file, path in pictures.items():
        captions, metadata = described.get(path, ((), {}))
        row = Row(str(file.relative_to(root)), captions=captions, metadata=metadata)
        row.label = "" if file.parent == root else file.parent.name
        if not captions:
            row.metadata = {key: value for key, value in metadata.items() if key != "caption_origin"}
            if (text := file.with_suffix(".txt")) in texts:
                read_caption(row, text)
        rows.append(row)
    return rows


def read_caption(row: Row, text: Path) -> None:
    """Sets the caption of a row to the content of a file, or why that cannot be read."""
    try:
        caption = read_text(text).strip()
    except ValueError as error:
        row.why = f"its caption: {error}"
        return
    if caption:
        row.captions, row.metadata = ((caption, 1.0),), row.metadata | {"caption_origin": "txt"}


def warn(where: object, names: Iterable[str], what: str, why: Sequence[str] = ()) -> None:
    """Prints one line about pictures to stderr: their number, and the first names with their reasons."""
    names = list(names)
    if names:
        shown = [f"{name} ({reason})" for name, reason in zip(names[:SHOWN], why, strict=False)] or names[:SHOWN]
        more = ", ..." if len(names) > SHOWN else ""
        print(f"warning: {len(names)} pictures of {where} {what}: {', '.join(shown)}{more}", file=sys.stderr)
