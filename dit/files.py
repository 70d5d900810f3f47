"""Reading and writing files: atomic writes, UTF-8 text, locks between processes, and the files that ship with dit."""

from __future__ import annotations

import codecs
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

HERE = Path(__file__).parent
ASSETS = HERE / "assets"
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"  # inside the package when it is installed


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives a file beside the target to write, which replaces the target when the block ends well: a reader or a crash
    never meets half a file.

    Raises ValueError, naming the path, when the disk is full or the place cannot be written.
    """
    path = Path(path)
    growing = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        growing = Path(name)
        yield growing
        with open(growing, "rb") as file:
            os.fsync(file.fileno())
        growing.chmod(0o644)
        growing.replace(path)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if growing is not None:
            growing.unlink(missing_ok=True)


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """`replacing` for content that is at hand."""
    with replacing(path) as growing:
        growing.write_bytes(content.encode() if isinstance(content, str) else content)


def read_text(path: str | Path) -> str:
    """The content of a UTF-8 file, without its byte order mark where it has one.

    Raises ValueError, naming the file, where it cannot be read or has another encoding.
    """
    try:
        data = Path(path).read_bytes()
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ValueError(f"{path} is encoded as UTF-16; save it as UTF-8")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte 0x{data[error.start]:02x} at offset {error.start}, as in Latin-1 or "
            f"Windows-1252); save it as UTF-8"
        ) from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None


def read_lines(path: str | Path) -> list[str]:
    """The lines of a UTF-8 file, as `read_text`. Only a newline ends a line: JSON strings and captions may hold the
    other characters that `str.splitlines` splits at."""
    return [line.removesuffix("\r") for line in read_text(path).split("\n")]


def read_json(path: str | Path, nan: bool = False) -> Any:
    """The content of a JSON file. nan: whether NaN and Infinity, which are no JSON, are numbers too, as in scores.

    Raises ValueError, naming the file, where it cannot be read or is no JSON.
    """
    return parse_json(read_text(path), str(path), nan)


def parse_json(text: str, what: str, nan: bool = False) -> Any:
    """`read_json` of a text; `what` names it in errors."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        return json.loads(text, parse_constant=None if nan else refuse)
    except RecursionError:
        raise ValueError(f"{what} is no JSON that can be read: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{what} is no JSON: {error}") from None


def try_lock(path: str | Path) -> IO[bytes] | None:
    """Locks a file for this process alone; None where another process has locked it.

    The lock lasts until the returned file is closed or the process ends, however it ends, so that no lock is ever
    stale; processes that are forked from it have no part in it. Raises ValueError where the file cannot be made.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")  # noqa: SIM115  (the caller keeps it open)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    os.register_at_fork(after_in_child=file.close)
    return file
