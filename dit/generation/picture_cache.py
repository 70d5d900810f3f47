"""Pictures that were made before, by the hash of all that decides them: PNG files with an index in sqlite.

A picture is kept as it leaves the sampler, so that each time it is asked for it is checked, marked, signed and logged
anew.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sqlite3
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dit.errors import first_line
from dit.files import write_atomic
from dit.generation.asking import Ask
from dit.generation.rows import array_of
from dit.picture_files import read_bytes

VERSION = 1
INDEX = "index.sqlite"
OURS = re.compile(r"[0-9a-f]{64}\.png|\.[0-9a-f]{64}\.png\..*\.tmp")  # files of pictures, and those that grow
WAIT = 60.0  # seconds for other processes that write
TABLE = "CREATE TABLE pictures (key TEXT PRIMARY KEY, sha256 TEXT NOT NULL, bytes INTEGER NOT NULL, used INTEGER)"


class PictureCache:
    """A folder of pictures by their keys, for several threads and processes. The files have at most `most` bytes; those
    that were not asked for the longest are removed. made_with: all that decides pictures besides the request; its
    `samplers` are by name.

    Files that cannot be read or written, and damaged ones, are named on stderr, and the picture is made anew. Raises
    ValueError for a folder that cannot be used, such as one with other files."""

    def __init__(self, folder: Path, most: int, made_with: Mapping[str, Any]) -> None:
        self.folder, self.most = folder, most
        self._made_with = {name: value for name, value in made_with.items() if name != "samplers"}
        self._samplers, self._lock = made_with["samplers"], threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            names = {file.name for file in folder.iterdir()}
            if names and INDEX not in names:
                raise ValueError("it has other files")
            self._base = sqlite3.connect(folder / INDEX, timeout=WAIT, isolation_level=None, check_same_thread=False)
            self._base.execute("PRAGMA journal_mode=WAL")
            with self._transaction():
                version = self._base.execute("PRAGMA user_version").fetchone()[0]
                if version == 0:
                    self._base.execute(TABLE)
                    self._base.execute(f"PRAGMA user_version={VERSION}")
                elif version != VERSION:
                    raise ValueError(f"it has version {version}, and this is {VERSION}")
                self._base.execute("CREATE INDEX IF NOT EXISTS pictures_by_use ON pictures(used)")
                self._remove_strays()
        except (sqlite3.Error, OSError, ValueError) as error:
            raise ValueError(f"picture_cache={folder} cannot be used: {error}; name another folder") from None

    def key(self, ask: Ask, seed: int) -> str:
        """Returns the SHA-256 of all that decides a picture. seed: with which it is sampled, which a mark in the noise
        decides too."""
        fields = {
            **self._made_with,
            "sampler": self._samplers[ask.sampler],
            "recipe": [ask.steps, ask.scale, ask.negative or None],
            "picture": [ask.prompt, seed, list(ask.size)],
        }
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    def has(self, key: str) -> bool:
        """Returns whether there is a picture of a key; only `get` reads and checks its file."""
        with self._lock, self._warning():
            return self._base.execute("SELECT 1 FROM pictures WHERE key=?", (key,)).fetchone() is not None
        return False

    def get(self, key: str) -> Tensor | None:
        """Returns the picture of a key, (3, H, W) uint8, or None if there is none."""
        with self._lock, self._warning():
            row = self._base.execute("SELECT sha256 FROM pictures WHERE key=?", (key,)).fetchone()
            if row is None:
                return None
            file = self.file(key)
            content = file.read_bytes() if file.is_file() else b""
            if hashlib.sha256(content).hexdigest() == row[0]:
                used = "UPDATE pictures SET used=(SELECT max(used) FROM pictures)+1 WHERE key=?"
                self._base.execute(used, (key,))
                return torch.from_numpy(read_bytes(content, str(file)))
            print(f"warning: {file} is damaged or missing; its picture is made anew", file=sys.stderr)
            with self._transaction():
                self._drop(key)
        return None

    def put(self, key: str, pixels: Tensor) -> None:
        """Keeps a picture, (3, H, W) uint8, and removes others if there are too many."""
        buffer = io.BytesIO()
        Image.fromarray(array_of(pixels)).save(buffer, format="PNG", compress_level=1)
        content = buffer.getvalue()
        row = key, hashlib.sha256(content).hexdigest(), len(content)
        with self._lock, self._warning(), self._transaction():
            write_atomic(self.file(key), content)
            last = "(SELECT ifnull(max(used), 0)+1 FROM pictures)"
            self._base.execute(f"INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, {last})", row)
            total = self._base.execute("SELECT sum(bytes) FROM pictures").fetchone()[0]
            while total > self.most:
                oldest = "SELECT key, bytes FROM pictures ORDER BY used LIMIT 1"
                other, size = self._base.execute(oldest).fetchone()
                self._drop(other)
                total -= size

    def drop(self, key: str) -> None:
        """Removes a picture."""
        with self._lock, self._warning(), self._transaction():
            self._drop(key)

    def file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.png"

    def close(self) -> None:
        self._base.close()

    def _drop(self, key: str) -> None:
        self._base.execute("DELETE FROM pictures WHERE key=?", (key,))
        self.file(key).unlink(missing_ok=True)

    def _remove_strays(self) -> None:
        """Removes files without a row: those of a process that was killed. No other process writes meanwhile."""
        known = {key for (key,) in self._base.execute("SELECT key FROM pictures")}
        for file in self.folder.glob("??/*"):
            if OURS.fullmatch(file.name) and file.stem not in known:
                file.unlink(missing_ok=True)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._base.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._base.in_transaction:  # a full disk ends it
                self._base.execute("ROLLBACK")
            raise
        self._base.execute("COMMIT")

    @contextmanager
    def _warning(self) -> Iterator[None]:
        """A cache that fails costs time, and never a picture."""
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:
            print(f"warning: picture_cache={self.folder}: {first_line(error)}", file=sys.stderr)
