"""The images that a layout lists, with what is known of them, and the files that keep it between runs."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dit.code_digest import code_digest
from dit.data.captions import Captions
from dit.errors import first_line
from dit.files import replacing
from dit.picture_files import PictureFile, UnreadablePicture, inspect_bytes

Properties = dict[str, Any]  # of an image in its source's metadata


@dataclass(slots=True)
class Row:
    """An image of a source.

    name: unique in the source, as in messages. place: numbers with which its layout finds its bytes. label: the name
    of its class, or "". picture: its properties, None if it cannot be read; why: the reason. split: train, val or test
    if the layout names it, else None.
    """

    name: str
    place: tuple[int, ...] = ()
    captions: Captions = ()
    label: str = ""
    metadata: Properties = field(default_factory=dict)
    picture: PictureFile | None = None
    why: str = ""
    split: str | None = None


def inspected(row: Row, data: bytes) -> Row:
    """Returns the row with the properties of its picture, or why it cannot be read."""
    try:
        row.picture = inspect_bytes(data, row.name)
    except UnreadablePicture as error:
        row.why = error.why
    return row


def jsonable(value: Any) -> Any:
    """Returns a value of metadata as JSON holds it; dates and other objects become texts, bytes are left out."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items() if not isinstance(item, bytes)}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("place", pa.list_(pa.int64())),
        ("captions", pa.string()),  # JSON
        ("label", pa.string()),
        ("metadata", pa.string()),  # JSON
        ("digest", pa.binary()),  # null for a picture that cannot be read
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("grey", pa.bool_()),
        ("alpha", pa.bool_()),
        ("why", pa.string()),
    ]
)


def index_file(cache_dir: str | Path, container: str) -> Path:
    """Returns the file that keeps what is known of a container: a folder, a shard, a data set. Its name depends on the
    code that inspects pictures, because another version may read other files."""
    code = code_digest("picture_files", "data/rows")
    return Path(cache_dir) / "sources" / f"{hashlib.sha256(f'{container} {code}'.encode()).hexdigest()[:20]}.parquet"


def save_rows(file: Path, stamp: str, rows: Sequence[Row]) -> None:
    """Writes rows, with a stamp of the container that they describe. Warns if the file cannot be written."""
    known = [row.picture for row in rows]
    columns = {
        "name": [row.name for row in rows],
        "place": [list(row.place) for row in rows],
        "captions": [json.dumps(row.captions) for row in rows],
        "label": [row.label for row in rows],
        "metadata": [json.dumps(jsonable(row.metadata)) for row in rows],
        "digest": [picture and picture.digest for picture in known],
        "width": [picture and picture.size[0] for picture in known],
        "height": [picture and picture.size[1] for picture in known],
        "grey": [picture and picture.grey for picture in known],
        "alpha": [picture and picture.alpha for picture in known],
        "why": [row.why for row in rows],
    }
    table = pa.table(columns, SCHEMA.with_metadata({"stamp": stamp}))
    try:
        with replacing(file) as growing:
            pq.write_table(table, growing, compression="zstd")
    except ValueError as error:
        print(f"warning: {error}: the next start inspects the pictures again", file=sys.stderr)


def load_rows(file: Path, stamp: str) -> list[Row] | None:
    """Returns the rows of a file with this stamp, or None if there is no such file."""
    if not file.is_file():
        return None
    try:
        table = pq.ParquetFile(file).read()  # `read_table` imports pandas, if it is there, for seconds
        if (table.schema.metadata or {}).get(b"stamp") != stamp.encode():
            return None
        columns = [table[name].to_pylist() for name in SCHEMA.names]
    except (pa.ArrowException, OSError, KeyError) as error:
        print(f"warning: {file} is broken and is made again: {first_line(error)}", file=sys.stderr)
        return None
    rows = []
    for name, place, captions, label, metadata, digest, width, height, grey, alpha, why in zip(*columns, strict=True):
        picture = None if digest is None else PictureFile(digest, (width, height), grey, alpha)
        pairs = () if captions == "[]" else tuple((text, weight) for text, weight in json.loads(captions))
        described = {} if metadata == "{}" else json.loads(metadata)
        rows.append(Row(name, tuple(place), pairs, label, described, picture, why))
    return rows


def indexed(cache_dir: str | Path | None, container: str, stamp: str, build: Callable[[], list[Row]]) -> list[Row]:
    """Returns the rows of a container: those of its index if one is there with this stamp, else newly built ones, which
    are kept. stamp: what changes with the container's content, such as its size and time."""
    if cache_dir is None:
        return build()
    file = index_file(cache_dir, container)
    found = load_rows(file, stamp)
    if found is None:
        found = build()
        save_rows(file, stamp, found)
    return found
