"""An append-only log of what was delivered and refused: a hash chain in sqlite, with prompts that can be erased.

The hash of an entry is SHA-256(hash of the entry before + its body as RFC 8785 JSON), in hexadecimal. Prompts are in a
table of their own, encrypted with a key of their subject (AES-256-GCM); the body holds the hash of the ciphertext, so
that the chain still checks after the key is deleted. The chain shows changes inside it. Its owner can rebuild all of
it, or cut off its end: only a checkpoint that somebody else keeps shows that.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VERSION = 1
START = "0" * 64  # takes the place of the hash before the first entry
WAIT = 60.0  # seconds for other processes that append
TABLES = {
    "entries": "CREATE TABLE entries (id INTEGER PRIMARY KEY, body TEXT NOT NULL, hash TEXT NOT NULL)",
    "texts": "CREATE TABLE texts (id INTEGER PRIMARY KEY, nonce BLOB NOT NULL, ciphertext BLOB NOT NULL)",
    "keys": "CREATE TABLE keys (subject TEXT PRIMARY KEY, key BLOB)",
}
TRIGGERS = {
    f"{table}_no_{verb}": f"CREATE TRIGGER {table}_no_{verb} BEFORE {verb.upper()} ON {table} {when}"
    f"BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END"
    for table, verb, when in (
        *((table, verb, "") for table in ("entries", "texts") for verb in ("update", "delete")),
        ("keys", "update", "WHEN NEW.key IS NOT NULL "),  # a key may only be erased
        ("keys", "delete", ""),
    )
}


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


class AuditLog:
    """A log file, made if it is missing or empty and `make` is true. Several processes may append to it. Raises
    ValueError for a file that is no log or of another version, and without the extra."""

    def __init__(self, file: str | Path, make: bool = True) -> None:
        try:
            import rfc8785
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as error:
            raise ValueError(f"the audit log needs {error.name}, which is missing: pip install 'dit[serve]'") from None
        self.file, self._canonical, self._cipher = Path(file), rfc8785.dumps, AESGCM
        if not make and not self.file.is_file():
            raise ValueError(f"there is no audit log {file}")
        with self._errors():
            if make:
                self.file.absolute().parent.mkdir(parents=True, exist_ok=True)
                # It has the keys of its texts, so that a new one is for its owner alone; files beside it get its mode.
                os.close(os.open(self.file, os.O_RDWR | os.O_CREAT, 0o600))
            # Threads of a server use it, one at a time.
            self._base = sqlite3.connect(self.file, timeout=WAIT, isolation_level=None, check_same_thread=False)
            self._base.execute("PRAGMA synchronous=FULL")
            self._base.execute("PRAGMA secure_delete=ON")
            if make:
                self._make_tables()
        found = self._version()
        if found == 0:
            raise ValueError(f"{file} is no audit log: it is empty, or another program's; name another")
        if found != VERSION:
            raise ValueError(f"{file} is an audit log of version {found}, and this is {VERSION}: name another")

    def _make_tables(self) -> None:
        self._base.execute("PRAGMA journal_mode=WAL")
        with self._transaction():
            if self._version() == 0 and not self._schema():
                for statement in (*TABLES.values(), *TRIGGERS.values()):
                    self._base.execute(statement)
                self._base.execute(f"PRAGMA user_version={VERSION}")

    def close(self) -> None:
        self._base.close()

    def append(
        self,
        kind: str,
        subject: str,
        body: Mapping[str, Any],
        texts: Mapping[str, Any] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> int:
        """Appends an entry and returns its number. texts: what is encrypted with the subject's key and can be erased.
        check: reads the log and raises ValueError if the entry must not be appended; no other process appends between.
        Raises ValueError if the entry cannot be written: nothing may be delivered then."""
        with self._errors(), self._transaction():
            check()
            if texts is None:
                return self._insert(kind, subject, body)
            key, nonce = self._key(subject), secrets.token_bytes(12)
            plain = json.dumps(texts, ensure_ascii=False).encode()
            ciphertext = self._cipher(key).encrypt(nonce, plain, subject.encode())
            held = {"texts_sha256": digest(nonce, ciphertext)}
            if "prompt" in texts:
                held["prompt_hmac"] = hmac.new(key, str(texts["prompt"]).encode(), hashlib.sha256).hexdigest()
            number = self._insert(kind, subject, {**body, **held})
            self._base.execute("INSERT INTO texts VALUES (?, ?, ?)", (number, nonce, ciphertext))
            return number

    def erase(self, subject: str) -> None:
        """Deletes the key of a subject, so that its texts cannot be read any more, and logs that. Raises ValueError if
        the log has none."""
        with self._errors():
            with self._transaction():
                row = self._base.execute("SELECT key FROM keys WHERE subject=?", (subject,)).fetchone()
                if row is None or row[0] is None:
                    raise ValueError(f"{self.file} has no key of the subject {subject!r}; there is nothing to erase")
                self._base.execute("UPDATE keys SET key=NULL WHERE subject=?", (subject,))
                self._insert("erasure", subject, {})
            self._base.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the key is not left in the write-ahead log

    def erased(self, subject: str) -> bool:
        """Returns whether the key of a subject is deleted, so that nothing more can be logged of it."""
        with self._errors():
            return (
                self._base.execute("SELECT 1 FROM keys WHERE subject=? AND key IS NULL", (subject,)).fetchone()
                is not None
            )

    def entry(self, number: int) -> dict[str, Any]:
        """Returns an entry with its hash, and its texts unless they are erased. Raises ValueError if there is none."""
        with self._errors():
            row = self._base.execute("SELECT body, hash FROM entries WHERE id=?", (number,)).fetchone()
            if row is None:
                raise ValueError(f"{self.file} has no entry {number}")
            body = json.loads(row[0])
            return {**body, "hash": row[1], "texts": self._texts(number, body)}

    def entries(self) -> Iterator[tuple[int, str, str]]:
        """Yields (number, body, hash) in order."""
        with self._errors():
            yield from self._base.execute("SELECT id, body, hash FROM entries ORDER BY id")

    def head(self) -> tuple[int, str]:
        """Returns the number of the last entry and its hash."""
        with self._errors():
            row = self._base.execute("SELECT id, hash FROM entries ORDER BY id DESC LIMIT 1").fetchone()
        return (int(row[0]), str(row[1])) if row else (0, START)

    def _insert(self, kind: str, subject: str, body: Mapping[str, Any]) -> int:
        last, before = self.head()
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        whole = {**body, "id": last + 1, "time": now, "kind": kind, "subject": subject}
        text = self._canonical(whole)
        row = (last + 1, text.decode(), digest(before.encode(), text))
        self._base.execute("INSERT INTO entries VALUES (?, ?, ?)", row)
        return last + 1

    def _key(self, subject: str) -> bytes:
        """Returns the key of a subject; a new one is logged by its hash. Raises ValueError if it is erased."""
        row = self._base.execute("SELECT key FROM keys WHERE subject=?", (subject,)).fetchone()
        if row is None:
            key = secrets.token_bytes(32)
            self._base.execute("INSERT INTO keys VALUES (?, ?)", (subject, key))
            self._insert("key", subject, {"key_sha256": digest(key)})
            return key
        if row[0] is None:
            raise ValueError(f"the key of the subject {subject!r} in {self.file} is erased; use another name")
        return bytes(row[0])

    def _texts(self, number: int, body: Mapping[str, Any]) -> dict[str, Any] | None:
        subject = body["subject"]
        row = self._base.execute("SELECT nonce, ciphertext FROM texts WHERE id=?", (number,)).fetchone()
        key = self._base.execute("SELECT key FROM keys WHERE subject=?", (subject,)).fetchone()
        if row is None or key is None or key[0] is None:
            return None
        from cryptography.exceptions import InvalidTag

        try:
            found: dict[str, Any] = json.loads(self._cipher(key[0]).decrypt(row[0], row[1], subject.encode()))
        except InvalidTag:
            raise ValueError(f"the texts of entry {number} cannot be decrypted: they or the key changed") from None
        return found

    def _version(self) -> int:
        with self._errors():
            return int(self._base.execute("PRAGMA user_version").fetchone()[0])

    def _schema(self) -> dict[str, str]:
        rows = self._base.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        return dict(rows.fetchall())

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._base.execute("BEGIN IMMEDIATE")  # so that no other process appends between reading the head and writing
        try:
            yield
        except BaseException:
            if self._base.in_transaction:
                self._base.execute("ROLLBACK")
            raise
        self._base.execute("COMMIT")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise ValueError(f"the audit log {self.file} cannot be read or written: {error}") from None


def faults(log: AuditLog) -> list[str]:
    """Returns all faults of a log, each with the place where it is; none if it is as it was written."""
    try:
        return list(_faults(log))
    except (sqlite3.Error, ValueError) as error:
        return [f"the database is damaged: {error}"]


def _faults(log: AuditLog) -> Iterator[str]:
    base, before, expected = log._base, START, 0
    for (line,) in base.execute("PRAGMA integrity_check"):
        if line != "ok":
            yield f"the database is damaged: {line}"
    if log._schema() != TABLES | TRIGGERS:
        yield "the tables or the triggers that forbid changes are not those of a log"
    texts: dict[int, str] = {}
    keys: dict[str, str | None] = {}
    for number, body, hashed in log.entries():
        expected += 1
        if number != expected:
            yield f"entry {expected} is missing"
            expected = number
        if digest(before.encode(), str(body).encode()) != hashed:
            yield f"entry {number}: its body, its hash or the hash before it is changed"
        before = str(hashed)
        try:
            held = json.loads(body)
            kind, subject = held["kind"], held["subject"]
        except (ValueError, KeyError, TypeError):
            continue  # named above
        if "texts_sha256" in held:
            texts[number] = held["texts_sha256"]
        if kind in ("key", "erasure"):
            keys[subject] = held.get("key_sha256")
    for number, nonce, ciphertext in base.execute("SELECT id, nonce, ciphertext FROM texts ORDER BY id"):
        if texts.pop(number, None) != digest(bytes_of(nonce), bytes_of(ciphertext)):
            yield f"the encrypted texts of entry {number} are changed, or the entry does not have them"
    yield from (f"the encrypted texts of entry {number} are missing" for number in texts)
    for subject, key in base.execute("SELECT subject, key FROM keys"):
        known = subject in keys
        if not known or keys.pop(subject) != (None if key is None else digest(bytes_of(key))):
            yield f"the key of the subject {subject!r} is not the one that was logged"
    yield from (f"the key of the subject {subject!r} is missing" for subject in keys)


def bytes_of(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
