"""Files of shards: local, at a URL or in an object store, by patterns and in ranges of bytes."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from braceexpand import braceexpand

from dit.data.listing import files_below
from dit.errors import first_line, nearest, shortened

PROTOCOLS = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "hf", "oci", "memory")  # of fsspec; none runs a command
TRIES, WAIT = 3, 1.0  # attempts to read from a remote store, and seconds before the second one
T = TypeVar("T")


class Unreachable(ValueError):
    """A file that cannot be read. why: the reason, without the file's name."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(f"cannot read {url}: {why}")
        self.why = why


class Missing(Unreachable):
    """A file that is not there."""


def protocol_of(url: str) -> str | None:
    """Returns the protocol of a URL, None for a local path. Raises ValueError for one that is not allowed."""
    name, mark, _ = url.partition("://")
    if url.startswith("pipe:"):
        raise ValueError(
            f"data.path={shortened(url)}: shell commands are not run; give a file, or a URL such as s3://..."
        )
    if not mark:
        return None
    if name not in PROTOCOLS:
        raise ValueError(f"data.path={shortened(url)}: {name}:// is not supported.{nearest(name, PROTOCOLS)}")
    return name


def expand(path: str, suffix: str) -> list[str]:
    """Returns the files of a path, in order: braces as in {000..127} are expanded, * and ? matched, and of a local
    folder all files with the suffix are taken. Raises ValueError if there are none."""
    try:
        patterns = list(braceexpand(path))
    except ValueError as error:
        raise ValueError(f"data.path={path}: the braces do not match: {first_line(error)}") from None
    found = [url for pattern in patterns for url in matches(pattern, suffix)]
    if not found:
        raise ValueError(f"data.path={path}: there is no {suffix} file; give a folder, a file, or a pattern")
    return found


def matches(pattern: str, suffix: str) -> list[str]:
    """Returns the files of a pattern without braces. A name without * is returned whether the file exists or not."""
    protocol, wild = protocol_of(pattern), any(mark in pattern for mark in "*?[")
    if protocol is None:
        if os.path.isdir(pattern):
            return [str(file) for file in files_below(Path(pattern)) if file.suffix == suffix]
        return sorted(glob.glob(pattern)) if wild else [pattern]
    if not wild or protocol in ("http", "https"):  # there a ? begins a query
        return [pattern]
    store, inner = store_of(pattern)
    return [store.unstrip_protocol(name) for name in attempt(pattern, lambda: sorted(store.glob(inner)))]


def store_of(url: str) -> tuple[Any, str]:
    """Returns fsspec's file system of a URL and the name in it. Raises ValueError if its package is missing."""
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except ImportError as error:
        raise ValueError(f"data.path={shortened(url)}: {first_line(error)}") from None


def attempt(url: str, read: Callable[[], T]) -> T:
    """Returns the result of a read, tried several times if the store is remote. Raises Unreachable."""
    tries = 1 if protocol_of(url) is None else TRIES
    for number in range(1, tries + 1):
        try:
            return read()
        except Unreachable:
            raise
        except Exception as error:  # the clients of object stores have errors of their own
            if is_missing(error):
                raise Missing(url, "there is no such file") from None
            if isinstance(error, ValueError) or number == tries:
                times = f", {number} times" if number > 1 else ""
                cause = error.__cause__ or error
                why = cause.strerror if isinstance(cause, OSError) and cause.strerror else first_line(cause)
                raise Unreachable(url, f"{shortened(why, 200)}{times}") from None
            time.sleep(WAIT * 2 ** (number - 1))
    raise AssertionError("the last attempt returns or raises")


def is_missing(error: Exception) -> bool:
    """Whether an error says that there is no such file. fsspec's HTTP client also raises FileNotFoundError, with the
    cause, if the server cannot be reached."""
    cause = error.__cause__
    if cause is None or isinstance(cause, FileNotFoundError):
        return isinstance(error, FileNotFoundError)
    return isinstance(error, FileNotFoundError) and getattr(cause, "status", None) in (404, 410)


def stamp_of(url: str) -> str:
    """Returns what changes if a file changes: its size, and its time or the tag of its content."""
    if protocol_of(url) is None:
        status = attempt(url, lambda: os.stat(url))
        return f"{status.st_size} {status.st_mtime_ns}"
    store, name = store_of(url)
    info = attempt(url, lambda: store.info(name))
    marks = ("ETag", "etag", "LastModified", "last_modified", "Last-Modified", "mtime", "updated", "md5Hash", "created")
    return " ".join(str(info[mark]) for mark in ("size", *marks) if info.get(mark) is not None)


def open_file(url: str) -> IO[bytes]:
    """Opens a file for reading from its beginning; parts of it can be skipped."""
    if protocol_of(url) is None:
        return attempt(url, lambda: open(url, "rb"))
    store, name = store_of(url)
    return attempt(url, lambda: store.open(name, "rb"))


def size_of(url: str) -> int | None:
    """Returns the size of a file in bytes, None if there is no such file. Raises Unreachable if that is not known."""
    try:
        if protocol_of(url) is None:
            return os.stat(url).st_size if os.path.isfile(url) else None
        store, name = store_of(url)
        size = attempt(url, lambda: store.info(name))["size"]
    except Missing:
        return None
    if size is None:
        raise Unreachable(url, "its server does not say its size")
    return int(size)


def read_file(url: str) -> bytes:
    """Returns the content of a file. Raises Unreachable if it cannot be read."""

    def read() -> bytes:
        with open_file(url) as file:
            return file.read()

    return attempt(url, read)


def read_ranges(wanted: Sequence[tuple[str, int, int]]) -> list[bytes]:
    """Returns ranges (url, offset, length) of files of one remote store, read at the same time. What fails is tried
    again. Raises Unreachable as `read_range`."""
    if not wanted:
        return []
    store, _ = store_of(wanted[0][0])
    names = [store._strip_protocol(url) for url, _, _ in wanted]
    starts, ends = [offset for _, offset, _ in wanted], [offset + length for _, offset, length in wanted]
    found = store.cat_ranges(names, starts, ends, on_error="return")
    return [
        data if isinstance(data, bytes) and len(data) == place[2] else read_range(*place)
        for data, place in zip(found, wanted, strict=True)
    ]


def read_range(url: str, offset: int, length: int) -> bytes:
    """Returns `length` bytes of a file from `offset` on. Raises Unreachable if it is shorter, or if a server sends
    other bytes than those that it was asked for."""
    if protocol_of(url) is None:

        def local() -> bytes:
            with open(url, "rb") as file:
                return os.pread(file.fileno(), length, offset)

        data = attempt(url, local)
    else:
        store, name = store_of(url)
        data = attempt(url, lambda: store.cat_file(name, start=offset, end=offset + length))
    if len(data) != length:
        server = "its server ignores ranges of bytes: copy the file" if len(data) > length else "it was cut short"
        raise Unreachable(url, f"got {len(data)} bytes at {offset} instead of {length}; {server}")
    return data
