"""The files of shards (`dit.data.shards`), in a folder, at a URL or in an object store: their arrays by ranges of rows.

Files of a folder are mapped into memory: pages are read when they are used, and may be dropped. Of a remote file only
the rows that are used are read, by ranges of bytes; arrays that are read whole stay in memory, a limited number.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dit.data.remote import Unreachable, attempt, open_file, protocol_of, read_range, read_ranges, size_of
from dit.errors import first_line
from dit.files import replacing, try_lock

OPEN = 512  # number of shards that are mapped, or whose headers are known, at the same time
KEPT = 1024  # number of whole arrays of remote files that stay in memory
POLL = 0.2  # seconds between two looks at a copy that another process makes
BLOCK = 2**22  # bytes that are copied at once
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "I64": torch.int64}


@dataclass(frozen=True)
class ShardFile:
    """A file of a shard: its path or URL, its size in bytes and its SHA-256. copies: a folder for a copy of a remote
    file; None reads ranges of it."""

    url: str
    size: int
    digest: str
    copies: str | None = None

    @property
    def is_remote(self) -> bool:
        return protocol_of(self.url) is not None

    def sha256(self) -> str:
        """Returns the SHA-256 of the file as it is now. Raises Unreachable if it cannot be read."""

        def read() -> str:
            digest = hashlib.sha256()
            with open_file(self.url) as stream:
                while block := stream.read(BLOCK):
                    digest.update(block)
            return digest.hexdigest()

        return attempt(self.url, read)


@lru_cache(maxsize=OPEN)
def mapped(file: ShardFile) -> dict[str, Tensor]:
    """Returns the arrays of a local file, mapped into memory."""
    try:
        return load_file(file.url)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file.url} cannot be read: {first_line(error)}; prepare the data again") from None


@lru_cache(maxsize=OPEN)
def places(file: ShardFile) -> dict[str, tuple[torch.dtype, list[int], int]]:
    """Returns the dtype, the shape and the first byte of each array of a remote file, from its header."""
    length = int.from_bytes(read_range(file.url, 0, 8), "little")
    if length > file.size - 8:
        raise ValueError(f"{file.url} cannot be read: its header is damaged; copy it again")
    try:
        header = json.loads(read_range(file.url, 8, length))
        header.pop("__metadata__", None)
        return {
            name: (DTYPES[entry["dtype"]], list(entry["shape"]), 8 + length + int(entry["data_offsets"][0]))
            for name, entry in header.items()
        }
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{file.url} cannot be read: its header is damaged; copy it again") from None


@lru_cache(maxsize=OPEN)
def shapes(file: ShardFile) -> dict[str, list[int]]:
    """Returns the shape of each array of a file by its name."""
    if file.is_remote:
        return {name: shape for name, (_, shape, _) in places(file).items()}
    return {name: list(array.shape) for name, array in mapped(file).items()}


@lru_cache(maxsize=KEPT)
def whole(file: ShardFile, name: str) -> Tensor:
    """Returns an array of a remote file."""
    return rows_of(name, [(file, 0, places(file)[name][1][0])])[0]


def array(file: ShardFile, name: str) -> Tensor:
    """Returns a small array of a file: one that is read whole."""
    return whole(file, name) if file.is_remote else mapped(file)[name]


def rows_of(name: str, wanted: Sequence[tuple[ShardFile, int, int]]) -> list[Tensor]:
    """Returns rows `first` to `last` - 1 of the array `name` of each file (file, first, last), which are all local or
    all remote. Raises Unreachable, with the file's name, if a remote one cannot be read."""
    if not wanted or not wanted[0][0].is_remote:
        return [mapped(file)[name][first:last] for file, first, last in wanted]
    kinds, ranges = [], []
    for file, first, last in wanted:
        dtype, (_, *shape), begin = places(file)[name]
        row = dtype.itemsize * torch.Size(shape).numel()
        kinds.append((dtype, (last - first, *shape)))
        ranges.append((file.url, begin + first * row, (last - first) * row))
    read = iter(read_ranges([place for place in ranges if place[2]]))
    return [
        torch.frombuffer(bytearray(next(read)), dtype=dtype).view(shape) if length else torch.empty(shape, dtype=dtype)
        for (dtype, shape), (_, _, length) in zip(kinds, ranges, strict=True)
    ]


@lru_cache(maxsize=2 * OPEN)
def at_hand(file: ShardFile) -> ShardFile:
    """Returns the file, or its copy, which is made by the first process that needs it, compared with its SHA-256, and
    kept. Raises ValueError, with its name, if it cannot be read or written, or is damaged."""
    if file.copies is None or not file.is_remote:
        return file
    copy = ShardFile(str(Path(file.copies) / f"{file.digest[:32]}{Path(file.url).suffix}"), file.size, file.digest)
    while size_of(copy.url) != file.size:
        lock = Path(copy.url).with_suffix(".lock")
        if (held := try_lock(lock)) is None:
            time.sleep(POLL)
            continue
        try:
            if size_of(copy.url) != file.size:
                download(file, Path(copy.url))
        finally:
            lock.unlink(missing_ok=True)
            held.close()
    return copy


def download(file: ShardFile, target: Path) -> None:
    digest = hashlib.sha256()
    with replacing(target) as growing, open(growing, "wb") as stream:
        for offset in range(0, file.size, BLOCK):
            block = read_range(file.url, offset, min(BLOCK, file.size - offset))
            digest.update(block)
            stream.write(block)
        if digest.hexdigest() != file.digest:
            raise Unreachable(file.url, "it is damaged: it has another SHA-256 than in its manifest")
