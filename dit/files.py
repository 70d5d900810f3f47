"""Reading and writing files: atomic writes, UTF-8 text, locks between processes, and the files that ship with dit."""

from __future__ import annotations

import codecs
import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

HERE = Path(__file__).parent
ASSETS = HERE / "assets"
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"  # inside the package when it is installed

POLL = 0.2  # seconds between two looks at what other processes do

# Files of a run's directory.
LOCK = ".lock"  # locked while a process trains in it
ERROR = "error.txt"  # why training failed
# SWEEP/3.run has the path of the run that job 3 of a sweep continued, instead of one in SWEEP/3.
ELSEWHERE = ".run"


@contextmanager
def replacing(path: str | Path, mode: int = 0o644) -> Iterator[Path]:
    """Yields a temporary file beside the target, which replaces the target if the block ends without an error, so that
    neither a reader nor a crash leaves an incomplete file. mode: its permissions; before, only its owner has any.

    Raises ValueError with the path if it cannot be written, e.g. because the disk is full.
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
        growing.chmod(mode)
        growing.replace(path)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if growing is not None:
            growing.unlink(missing_ok=True)


def write_atomic(path: str | Path, content: str | bytes, mode: int = 0o644) -> None:
    """Writes a file as `replacing` does: completely or not at all."""
    with replacing(path, mode) as growing:
        growing.write_bytes(content.encode() if isinstance(content, str) else content)


def write_secret(path: Path, content: bytes) -> None:
    """Writes a new file that only its owner can read. Raises ValueError if it exists or cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from None


def sha256_of(path: str | Path) -> str:
    """Returns the SHA-256 of a file's content in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: str | Path) -> str:
    """Returns the content of a UTF-8 file without a byte order mark.

    Raises ValueError with the path if it cannot be read or has another encoding.
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
    """Returns the lines of a UTF-8 file, as `read_text`. Only a newline ends a line, because JSON strings and captions
    may contain the other characters at which `str.splitlines` splits."""
    return [line.removesuffix("\r") for line in read_text(path).split("\n")]


def read_json(path: str | Path, nan: bool = False) -> Any:
    """Returns the content of a JSON file. nan: whether NaN and Infinity, which are not JSON, are allowed, as in scores.

    Raises ValueError with the path if it cannot be read or is not JSON.
    """
    return parse_json(read_text(path), str(path), nan)


def parse_json(text: str, what: str, nan: bool = False) -> Any:
    """Returns the value of a JSON text, as `read_json`; `what` names it in errors."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not a JSON number")

    try:
        return json.loads(text, parse_constant=None if nan else refuse)
    except RecursionError:
        raise ValueError(f"{what} cannot be read as JSON: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{what} is not JSON: {error}") from None


def try_lock(path: str | Path) -> IO[bytes] | None:
    """Locks a file for this process only. Returns None if another process has locked it, or has just removed it.

    The lock lasts until the returned file is closed or the process ends, also by a signal, so that locks are never
    stale. Forked processes do not inherit it. Raises ValueError if the file cannot be created.
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
    if not is_at(file, path):
        file.close()
        return None
    os.register_at_fork(after_in_child=file.close)
    return file


def is_at(file: IO[bytes], path: Path) -> bool:
    """Returns whether an open file is the one of a path: the last holder of a lock may have removed it meanwhile."""
    try:
        return os.fstat(file.fileno()).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of a file, which is removed at the end; waits while another process holds it."""
    while (held := try_lock(path)) is None:
        time.sleep(POLL)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        held.close()


def take(lock: Path, done: Callable[[], object], write: Callable[[], None]) -> bool:
    """Calls `write` with a lock, whose file is removed at the end. Returns False without it: if another process has the
    lock, or if one has `done` the work in the meantime."""
    held = try_lock(lock)
    if held is None:
        return False
    try:
        if done():
            return False
        write()
        return True
    finally:
        lock.unlink(missing_ok=True)
        held.close()


def is_locked(path: str | Path) -> bool:
    """Returns whether a process of this machine has locked a file with `try_lock`. Creates no file."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def sync(path: Path) -> None:
    """Waits until a file or a folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def append_line(path: str | Path, line: str) -> None:
    """Appends a line to a UTF-8 file, also while other processes append to it. Raises ValueError if it cannot be
    written."""
    data = f"{line}\n".encode()
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if file.write(data) != len(data):
                raise OSError(f"only a part of a line was written to {path}")
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from None
