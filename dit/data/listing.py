"""The pictures below a folder, with the captions that lie beside them."""

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
HIDDEN = ("__MACOSX", "@eaDir")  # what macOS and Synology leave in folders, beside names that begin with a dot
SHOWN = 5  # names in a warning
Found = tuple[Path, str, PictureFile]  # a picture that can be read, and its caption


def files_below(root: Path) -> list[Path]:
    """Every file below a folder, by name, without hidden files and folders. Links to folders are followed, but not into
    a folder that they lie in."""

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
    """The rows of a metadata file with the numbers of their lines. Raises ValueError where it is not JSON lines, or not
    CSV with a column file_name."""
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
    """A line of JSON. Raises ValueError where it is none."""
    try:
        return parse_json(line, str(file), nan=True)
    except ValueError:
        raise ValueError(f'{file} line {number}: expected {{"file_name": ..., "text": ...}}') from None


def captions_of_metadata(file: Path) -> dict[str, str]:
    """metadata.jsonl or metadata.csv of HF `imagefolder`: file_name -> text (or caption), of the rows that have one."""
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
    """Reports the rows of a metadata file that name no picture, and what is wrong where that can be seen."""
    if not names:
        return
    shown = ", ".join(repr(shortened(name)) for name in names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    remedy = ""
    for start in (root, file.parent.parent):
        if os.path.isfile(start / names[0]):
            right = os.path.relpath(start / names[0], file.parent)
            remedy = f"; file_name counts from the folder that {file.name} lies in: write {right!r}"
    print(f"warning: {len(names)} of {rows} rows of {file} match no picture: {shown}{remedy}", file=sys.stderr)


def captions_below(root: Path, files: Sequence[Path], pictures: set[str]) -> dict[str, str]:
    """What all metadata files below a folder say, by the pictures' paths; rows that match none are reported."""
    described: dict[str, str] = {}
    for file in (file for file in files if file.name in METADATA):
        captions = captions_of_metadata(file)
        paths = {name: os.path.normpath(file.parent / name) for name in captions}
        warn_of_rows(root, file, [name for name in captions if paths[name] not in pictures], len(captions))
        described |= {paths[name]: caption for name, caption in captions.items()}
    return described


def pictures_below(root: Path) -> list[tuple[Path, str]]:
    """Every picture below a folder, by name, with its row in a metadata.jsonl or metadata.csv, or the .txt file beside
    it, else "". Raises ValueError for texts that are not UTF-8, and metadata in another form."""
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
    """Reports pictures in one line: their number, and the names of the first with the reason for each."""
    if files:
        names = [str(file.relative_to(root)) for file in files[:SHOWN]]
        shown = [f"{name} ({reason})" for name, reason in zip(names, why, strict=False)] or names
        more = ", ..." if len(files) > SHOWN else ""
        print(f"warning: {len(files)} pictures below {root} {what}: {', '.join(shown)}{more}", file=sys.stderr)


def inspected(root: Path, items: Sequence[tuple[Path, str]]) -> list[Found]:
    """What is known of each of these pictures, without those that cannot be read, which are reported."""

    def look(item: tuple[Path, str]) -> PictureFile | UnreadablePicture:
        try:
            return inspect(item[0])
        except UnreadablePicture as error:
            return error

    with ThreadPoolExecutor() as pool:
        found = list(tqdm(pool.map(look, items), total=len(items), desc=f"reading {root}", unit="image", leave=False))
    broken = [
        (file, seen.why) for (file, _), seen in zip(items, found, strict=True) if isinstance(seen, UnreadablePicture)
    ]
    warn(root, [file for file, _ in broken], "cannot be read and are left out", [why for _, why in broken])
    return [(*item, seen) for item, seen in zip(items, found, strict=True) if isinstance(seen, PictureFile)]
