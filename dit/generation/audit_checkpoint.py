"""Signed checkpoints of an audit log: kept by somebody else, they show that it was rebuilt or cut off later."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

from dit.files import read_json, write_atomic, write_secret
from dit.generation.audit import START, AuditLog


def signing_key(file: Path) -> Any:
    """Returns the Ed25519 private key of a PEM file, made if it is missing. Raises ValueError for another file."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not file.exists():
        made = Ed25519PrivateKey.generate()
        form, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        write_secret(file, made.private_bytes(serialization.Encoding.PEM, form, none))
        return made
    try:
        key = serialization.load_pem_private_key(file.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{file} is not a private key without a password: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"{file} is not an Ed25519 key")
    return key


def message(held: dict[str, Any]) -> bytes:
    """Returns the bytes that are signed."""
    import rfc8785

    return rfc8785.dumps({name: held[name] for name in ("entries", "head", "time")})


def export(log: AuditLog, key_file: Path, out: Path) -> dict[str, Any]:
    """Writes a checkpoint of the log as it is now: the number of entries, the last hash, the time, and a signature."""
    entries, head = log.head()
    held: dict[str, Any] = {"entries": entries, "head": head}
    held["time"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    key = signing_key(key_file)
    held["signature"] = base64.b64encode(key.sign(message(held))).decode()
    held["public_key"] = base64.b64encode(key.public_key().public_bytes_raw()).decode()
    write_atomic(out, json.dumps(held, indent=2) + "\n")
    return held


def checkpoint_faults(log: AuditLog, file: Path, public_key: str | None = None) -> list[str]:
    """Returns why a checkpoint does not fit the log. public_key: the one that must have signed it, in base64; None for
    that of the file, which anybody can have written."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    held = read_json(file)
    try:
        signer = Ed25519PublicKey.from_public_bytes(base64.b64decode(public_key or held["public_key"]))
        signer.verify(base64.b64decode(held["signature"]), message(held))
    except (InvalidSignature, KeyError, TypeError, ValueError):
        return [f"the checkpoint {file} is not signed with that key, or changed"]
    at = {0: START} | {number: hashed for number, _, hashed in log.entries()}
    if held["entries"] not in at:
        return [f"the log ends at entry {log.head()[0]}, and the checkpoint {file} has {held['entries']} entries"]
    if at[held["entries"]] != held["head"]:
        return [f"entry {held['entries']} is not the one of the checkpoint {file}: the log was rebuilt"]
    return []
