"""Keys of the server's users, of which only hashes are stored, and their quotas of network calls per day."""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dit.files import read_json, write_atomic
from dit.generation.asking import Refused

DAY = 86_400


@dataclass(frozen=True)
class Key:
    """A user's key. sha256: of the key. calls_per_day: network calls for one row per UTC day; None for no quota."""

    name: str
    sha256: str
    calls_per_day: int | None = None


def read_keys(file: Path) -> list[Key]:
    """Returns the keys of a file. Raises ValueError for another file."""
    try:
        return [Key(**entry) for entry in read_json(file)]
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"key_file={file} is not a file of keys: {error}; make one with new_key=NAME") from None


def add_key(file: Path, name: str, calls_per_day: int | None) -> str:
    """Adds a new key to a file and returns it; the file has only its hash. Raises ValueError for a known name."""
    known = read_keys(file) if file.exists() else []
    if name in [key.name for key in known]:
        raise ValueError(
            f"new_key={name}: {file} has a key of this name; remove its entry first, or choose another name"
        )
    secret = f"dit-{secrets.token_urlsafe(32)}"
    entries = [*known, Key(name, hashlib.sha256(secret.encode()).hexdigest(), calls_per_day)]
    write_atomic(file, json.dumps([asdict(entry) for entry in entries], indent=2) + "\n")
    return secret


class Keys:
    """Knows the keys, and counts the network calls of each since midnight UTC. Without keys everyone is served."""

    def __init__(self, known: list[Key], now: Callable[[], float] = time.time) -> None:
        self.known, self.now = {key.sha256: key for key in known}, now
        self._lock, self._day, self._used = threading.Lock(), 0, dict[str, int]()

    def of(self, given: str | None) -> Key | None:
        """Returns the key of a request; None if no keys are needed. Raises Refused for an unknown or missing one."""
        if not self.known:
            return None
        found = None if given is None else self.known.get(hashlib.sha256(given.encode()).hexdigest())
        if found is None:
            what = "a key is missing" if given is None else "the key is unknown"
            raise Refused(f"{what}: send it as 'Authorization: Bearer KEY'", 401, "invalid_api_key")
        return found

    def charge(self, key: Key | None, calls: int) -> None:
        """Adds calls to what a key has used, or removes them if negative. Raises Refused beyond its quota."""
        if key is None or key.calls_per_day is None:
            return
        with self._lock:
            day, seconds = divmod(int(self.now()), DAY)
            if day != self._day:
                self._day, self._used = day, {}
            used = self._used.get(key.name, 0) + calls
            if calls > 0 and used > key.calls_per_day:
                left = DAY - seconds
                reason = (
                    f"the quota of {key.calls_per_day} network calls per day is used up; it begins again in {left} s"
                )
                raise Refused(reason, 429, "quota_exceeded", retry=left)
            self._used[key.name] = max(0, used)

    def used(self, key: Key) -> int:
        return self._used.get(key.name, 0)


def given_key(headers: Any) -> str | None:
    """Returns the key in the headers of a request, or None."""
    bearer = headers.get("authorization", "")
    found = bearer[7:].strip() if bearer[:7].lower() == "bearer " else headers.get("x-api-key", "").strip()
    return found or None
