"""Files that are whole or not there at all, and where those lie that ship with dit."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"


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
