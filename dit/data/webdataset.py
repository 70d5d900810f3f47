"""WebDataset shards: tar files whose consecutive members with one name, apart from the suffix, are one sample."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dit.data.captions import captions_in, captions_of_row
from dit.data.files_layout import FilesLayout
from dit.data.listing import SUFFIXES
from dit.data.provenance import Filter
from dit.data.remote import Unreachable, open_file, read_range
from dit.data.rows import Row, inspected
from dit.data.source import Options, Source
from dit.errors import first_line

TEXTS, METADATA, LABELS = ("txt", "caption", "text"), "json", ("cls", "class")
IMAGES = {suffix.removeprefix(".") for suffix in SUFFIXES}


@dataclass
class Sample:
    """The members of a shard with one name: those that describe the image as bytes, and where the image is."""

    key: str
    parts: dict[str, bytes] = field(default_factory=dict)
    image: tuple[str, int, int, bytes] | None = None  # suffix, offset, length, content


def samples_of(tar: tarfile.TarFile) -> Iterator[Sample]:
    """Yields the samples of an open shard in order. Raises tarfile.ReadError at the place where it is cut short."""
    sample: Sample | None = None
    for member in tar:  # which ends without an error at a broken header: see `check_end`
        folder, slash, file = member.name.rpartition("/")
        stem, _, suffix = file.partition(".")
        if not member.isreg() or not stem or file.startswith("__"):  # hidden files, and those of WebDataset itself
            continue
        key, suffix = f"{folder}{slash}{stem}", suffix.lower()
        if sample is None or sample.key != key:
            if sample is not None:
                yield sample
            sample = Sample(key)
        if suffix in IMAGES or suffix in (*TEXTS, METADATA, *LABELS):
            stream = tar.extractfile(member)
            assert stream is not None
            data = stream.read()
            if len(data) != member.size:
                raise tarfile.ReadError("unexpected end of data")
            if suffix not in IMAGES:
                sample.parts[suffix] = data
            elif sample.image is None:
                sample.image = (suffix, member.offset_data, member.size, data)
    if sample is not None:
        yield sample


def check_end(url: str, tar: tarfile.TarFile) -> None:
    """Raises tarfile.ReadError if a shard that was read to its end does not end with the block of zeros of a tar."""
    try:
        end = read_range(url, tar.offset, tarfile.BLOCKSIZE)
    except Unreachable as error:
        raise tarfile.ReadError(error.why) from None
    if end.strip(b"\0"):
        raise tarfile.ReadError("a broken header")


def row_of(sample: Sample) -> Row:
    """Returns the row of a sample, whose place is the offset and the length of its image."""
    if sample.image is None:
        return Row(sample.key, why=f"it has no image, a member with one of the suffixes {', '.join(sorted(IMAGES))}")
    suffix, offset, length, data = sample.image
    row = Row(f"{sample.key}.{suffix}", (offset, length))
    try:
        describe(row, sample.parts)
    except ValueError as error:
        row.why = "its caption or metadata is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        return row
    return inspected(row, data)


def describe(row: Row, parts: Mapping[str, bytes]) -> None:
    """Sets captions, label and metadata of a row from the other members of its sample. Raises ValueError."""
    if METADATA in parts:
        try:
            found = json.loads(parts[METADATA])
        except (json.JSONDecodeError, RecursionError):
            raise ValueError("its .json is not JSON") from None
        if not isinstance(found, dict):
            raise ValueError("its .json is not a JSON object")
        row.metadata, row.captions = found, captions_of_row(found, "its .json")
        row.label = str(found.get("label", ""))
    text = next((parts[name].decode("utf-8-sig") for name in TEXTS if name in parts), "")
    origin = METADATA
    if text.strip():
        row.captions, origin = captions_in(text, "its .txt"), "txt"
    if row.captions:
        row.metadata = {"caption_origin": origin} | row.metadata
    row.label = next((parts[name].decode().strip() for name in LABELS if name in parts), row.label)


def rows_of_shard(url: str) -> list[Row]:
    """Returns the rows of a shard, read once from begin to end; what cannot be read is a row with the reason."""
    rows: list[Row] = []
    try:
        with open_file(url) as file, tarfile.open(fileobj=file, mode="r|") as tar:
            rows.extend(map(row_of, samples_of(tar)))
            check_end(url, tar)
    except (tarfile.TarError, EOFError, OSError) as error:
        with open_file(url) as file:
            packed = file.read(2) == b"\x1f\x8b"
        why = (
            "it is compressed: unpack it, as in gunzip" if packed else f"{first_line(error)} after {len(rows)} samples"
        )
        rows.append(Row("", why=f"the shard is no tar or was cut short: {why}"))
    return rows


@dataclass(frozen=True)
class ShardLayout(FilesLayout):
    """WebDataset shards."""

    kind = "webdataset"
    suffix, mark = ".tar", "/"

    def rows_of(self, url: str) -> list[Row]:
        return rows_of_shard(url)

    def read(self, row: Row) -> bytes:
        number, offset, length = row.place
        return read_range(self.urls[number], offset, length)

    def no_captions(self, template: str | None, images: int) -> str:
        return (
            f"none of its {images} samples has a caption; add a .txt or a .json with text to each, give "
            f"data.template='a photo of *' if they have a .cls, or set data.captions=none"
        )


class WebDataset(Source):
    """The samples of WebDataset shards, cropped to `size` x `size`, as the `train`, the `val` or the `test` split.

    path: a folder, a tar file, a pattern with braces ({0000..0127}) or *, locally, as a URL or in an object store
    through fsspec (s3://, gs://, ...). A sample has an image (.jpg, .png, ...), and a .txt, a .json with text and
    provenance, or a .cls with the class for the template. Shards with train, validation or test in their names are the
    splits. Each shard is read once; its index is kept in cache_dir by name, size and time, and images are then read by
    offset in any order. A shard that is missing or cut short counts as one broken picture. The other arguments are
    those of `Folder`. Raises ValueError if a split is empty.
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
        super().__init__(ShardLayout(path), options, size, split, rules)
