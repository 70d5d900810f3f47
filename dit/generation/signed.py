"""Pictures with Content Credentials."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from dit.generation.credentials import Signer
from dit.generation.delivery import Delivery, Wrapped


class Signed(Wrapped):
    """Another delivery whose files are signed, with the row of the table in the manifest. parent: the file of the
    picture that all are edits of, or None."""

    def __init__(self, inner: Delivery, signer: Signer, parent: str | None = None) -> None:
        super().__init__(inner)
        self.signer, self.parent = signer, parent
        self.fingerprint = hashlib.sha256(inner.fingerprint.encode() + signer.chain).hexdigest()[:16]

    def sign(self, row: Mapping[str, Any], content: bytes) -> bytes:
        return self.signer.sign(super().sign(row, content), row, self.parent)
