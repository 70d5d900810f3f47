"""The pictures below a folder, with captions from the files beside them."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dit.errors import shortened
from dit.files import parse_json, read_lines, read_text
from dit.picture_files import PictureFile, UnreadablePicture, inspect

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
METADATA = ("metadata.jsonl", "metadata.csv")
HIDDEN = ("__MACOSX", "@eaDir")  # folders that macOS and Synology create, besides names that begin with a dot
SHOWN = 5  # number of names in a warning
Found = tuple[Path, str, PictureFile]  # a readable picture, its caption, and its properties


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
    """Yields the line numbers and rows of a metadata file. Raises ValueError if it is neither JSON lines nor CSV with a
    column file_name."""
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


def row_of(file: Path, number: int, line: str) -> Any:
    """Returns the value of a line. Raises ValueError if it is not JSON."""
    try:
        return parse_json(line, str(file), nan=True)
    except ValueError:
        raise ValueError(f'{file} line {number}: expected {{"file_name": ..., "text": ...}}') from None


def captions_of_metadata(file: Path) -> dict[str, str]:
    """Returns file_name -> text (or caption) of a metadata.jsonl or metadata.csv of HF `imagefolder`, if not empty."""
    captions, described, rows = {}, False, 0
    for number, row in rows_of(file):
        name = row.get("file_name") if isinstance(row, dict) else None
        if not isinstance(name, str) or not name:
            raise ValueError(f'{file} line {number}: expected {{"file_name": ..., "text": ...}}')
        described, rows = described or "text" in row or "caption" in row, rows + 1
        text = row.get("text", row.get("caption"))
        if isinstance(text, str) and text.strip():
            captions[name] = text.strip()
    if rows and not described:
        print(f"warning: {file}: none of its {rows} rows has a text or a caption", file=sys.stderr)
    return captions


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


def captions_below(root: Path, files: Sequence[Path], pictures: set[str]) -> dict[str, str]:
    """Returns the captions of all metadata files by the paths of the pictures. Warns of rows without a picture."""
    described: dict[str, str] = {}
    for file in (file for file in files if file.name in METADATA):
        captions = captions_of_metadata(file)
        paths = {name: os.path.normpath(file.parent / name) for name in captions}
        warn_of_rows(root, file, [name for name in captions if paths[name] not in pictures], len(captions))
        described |= {paths[name]: caption for name, caption in captions.items()}
    return described


def pictures_below(root: Path) -> list[tuple[Path, str]]:
    """Returns every picture below a folder, sorted by name, with its caption: its row in a metadata.jsonl or
    metadata.csv, or else the .txt file beside it, or else "".

    Raises ValueError if a text is not UTF-8, or a metadata file has another form.
    """
    files = files_below(root)
    pictures = {file: os.path.normpath(file) for file in files if file.suffix.lower() in SUFFIXES}
    described, texts = captions_below(root, files, set(pictures.values())), set(files)
    found = []
    for file, path in pictures.items():
        caption = described.get(path, "")
        if not caption and (text := file.with_suffix(".txt")) in texts:
            caption = read_text(text).strip()
        found.append((file, caption))
    return found


def warn(root: Path, files: Sequence[Path], what: str, why: Sequence[str] = ()) -> None:
    """Prints one line about pictures to stderr: their number, and the first names with their reasons."""
    if files:
        names = [str(file.relative_to(root)) for file in files[:SHOWN]]
        shown = [f"{name} ({reason})" for name, reason in zip(names, why, strict=False)] or names
        more = ", ..." if len(files) > SHOWN else ""
        print(f"warning: {len(files)} pictures below {root} {what}: {', '.join(shown)}{more}", file=sys.stderr)


def inspected(root: Path, items: Sequence[tuple[Path, str]]) -> list[Found]:
    """Returns these pictures with their properties. Leaves out and reports those that cannot be read."""

    def try_inspect(item: tuple[Path, str]) -> PictureFile | UnreadablePicture:
        try:
            return inspect(item[0])
        except UnreadablePicture as error:
            return error

    with ThreadPoolExecutor() as pool:
        found = list(
            tqdm(pool.map(try_inspect, items), total=len(items), desc=f"reading {root}", unit="image", leave=False)
        )
    broken = [
        (file, result.why)
        for (file, _), result in zip(items, found, strict=True)
        if isinstance(result, UnreadablePicture)
    ]
    warn(root, [file for file, _ in broken], "cannot be read and are left out", [why for _, why in broken])
    return [(*item, result) for item, result in zip(items, found, strict=True) if isinstance(result, PictureFile)]
