"""Content Credentials (C2PA): a signed manifest in a picture's file that says what a model made, and from what."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from dit.errors import first_line
from dit.files import parse_json
from dit.generation.encoding import source_type
from dit.generation.rows import flat
from dit.picture_files import FAULTS

EXTRA = "Content Credentials need an extra: pip install 'dit[marks]'"
FIELDS = "org.dit.generation"  # the assertion with a row of the table, as text: lists of numbers may come back as bytes
# What it means that c2pa cannot read a file, by the first word of its error; all others: the manifest is broken.
STATES = {"ManifestNotFound": "missing", "NotSupported": "unreadable", "Io": "unreadable", "Remote": "unreadable"}


@dataclass(frozen=True)
class Credentials:
    """What a file's credentials say. state: missing, trusted (signed by one of the given anchors), untrusted (intact,
    signed by someone else), changed, or unreadable (in a format that cannot be read here, only linked to, or with other
    values than dit signs). problems: the codes of C2PA's validation that failed, and other reasons. fields: the row of
    the table that was signed. actions: what was done, in order: the name, the digital source type and the parameters.
    parents: the pictures that it was made from, by title, with the signer of their own credentials or "". manifest: the
    id of the manifest."""

    state: str
    problems: tuple[str, ...] = ()
    signer: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    actions: tuple[Mapping[str, Any], ...] = ()
    parents: tuple[Mapping[str, Any], ...] = ()
    manifest: str = ""


def library() -> Any:
    """Returns the module c2pa. Raises ValueError if it is not installed."""
    try:
        import c2pa
    except ImportError:
        raise ValueError(EXTRA) from None
    return c2pa


def read_pem(path: str | Path, what: str) -> bytes:
    """Returns the content of a PEM file. Raises ValueError if it cannot be read or is not PEM."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read the {what} {path}: {error.strerror or error}") from None
    if b"-----BEGIN" not in content:
        raise ValueError(f"the {what} {path} is not a PEM file")
    return content


class Signer:
    """Signs PNG, JPEG and WebP files with ES256. certificate: a PEM file with the chain, the signer's own certificate
    first; key: the PEM file of its private key. Raises ValueError for files that do not fit together and for an expired
    certificate."""

    def __init__(self, certificate: str | Path, key: str | Path) -> None:
        self.c2pa = library()
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        self.chain, self.key = read_pem(certificate, "certificate"), read_pem(key, "key")
        try:
            own, private = x509.load_pem_x509_certificates(self.chain)[0], load_pem_private_key(self.key, None)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{certificate} and {key} cannot be read: {first_line(error)}") from None
        self.certificate, self.expires = certificate, own.not_valid_after_utc
        self._check_expiry()
        if private.public_key() != own.public_key():
            raise ValueError(
                f"{key} is not the private key of {certificate}: the first certificate must be the signer's"
            )

    def _check_expiry(self) -> None:
        if datetime.now(UTC) > self.expires:
            raise ValueError(f"the certificate {self.certificate} expired on {self.expires:%Y-%m-%d}: renew it")

    def sign(self, content: bytes, row: Mapping[str, Any], parent: str | Path | None = None) -> bytes:
        """Returns a PNG, JPEG or WebP file with a signed manifest; all else in it stays. row: what the table says of
        the picture; parent: the file of the picture that it is an edit of, or None if it was made from noise. Raises
        ValueError if the file cannot be signed, also after the certificate expires."""
        self._check_expiry()
        info = self.c2pa.C2paSignerInfo(b"es256", self.chain, self.key, None)
        manifest = {
            "claim_generator_info": [{"name": "dit"}],
            "title": str(row.get("name", "picture")),
            "assertions": [{"label": FIELDS, "data": row_data(row)}],
        }
        settings = {"builder": {"thumbnail": {"enabled": False}}}
        try:
            with local_context(self.c2pa, settings) as context, self.c2pa.Builder(manifest, context) as builder:
                self._say_origin(builder, row, parent)
                signed = io.BytesIO()
                with self.c2pa.Signer.from_info(info) as signer:
                    builder.sign(signer, kind_of(content), io.BytesIO(content), signed)
        except self.c2pa.C2paError as error:
            raise ValueError(f"the picture cannot be signed: {first_line(error)}") from None
        return signed.getvalue()

    def _say_origin(self, builder: Any, row: Mapping[str, Any], parent: str | Path | None) -> None:
        """Adds the actions: created, or opened and edited, with the parent."""
        intents = self.c2pa.C2paBuilderIntent
        if parent is None:
            builder.set_intent(intents.CREATE, self.c2pa.C2paDigitalSourceType.TRAINED_ALGORITHMIC_MEDIA)
            return
        given = Path(parent).read_bytes()
        builder.set_intent(intents.EDIT)
        ingredient = {"title": Path(parent).name, "relationship": "parentOf"}
        builder.add_ingredient(ingredient, kind_of(given), io.BytesIO(given))
        edit = {name: value for name, value in flat(row.get("edit") or {}).items() if value is not None}
        builder.add_action({"action": "c2pa.edited", "digitalSourceType": source_type(row), "parameters": edit})


def local_context(c2pa: Any, settings: Mapping[str, Any]) -> Any:
    """Returns a context of c2pa with these settings that opens no connection: neither for a manifest that a file only
    links to, nor for the state of a certificate."""
    verify = {"remote_manifest_fetch": False, "ocsp_fetch": False} | dict(settings.get("verify", {}))
    return c2pa.Context(c2pa.Settings.from_dict({**settings, "verify": verify}))


def manifest_id(content: bytes) -> str:
    """Returns the id of the manifest in the content of a picture's file, or "" if it has none, as where c2pa, which
    signs, is not installed."""
    if b"jumb" not in content or find_spec("c2pa") is None:  # the name of a box that manifests are in, in all formats
        return ""
    return read_credentials(content).manifest


def kind_of(content: bytes) -> str:
    """Returns the media type of the content of a picture's file. Raises ValueError if it is no picture."""
    return opened(content)[0]


def opened(content: bytes) -> tuple[str, tuple[int, int]]:
    """Returns the media type and the size (width, height) of the content of a picture's file, before it is decoded.
    Raises ValueError if it is no picture, or has too many pixels to be decoded."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            kind = "image/jpeg" if picture.format == "MPO" else str(picture.get_format_mimetype())
            return kind, picture.size
    except Image.DecompressionBombError:
        raise ValueError("the picture has too many pixels to be decoded; make it smaller") from None
    except FAULTS:
        raise ValueError("this is no picture: it must be a PNG, JPEG or WebP file") from None


def read_credentials(file: Path | bytes, anchors: str | Path | None = None) -> Credentials:
    """Returns the credentials of a picture's file, given its path or its content. anchors: a PEM file of certificates
    whose signatures are trusted. Raises ValueError if the extra is missing or the anchors cannot be read."""
    c2pa = library()
    content = file.read_bytes() if isinstance(file, Path) else file
    trust: dict[str, Any] = {"verify": {"verify_trust": anchors is not None}}
    if anchors is not None:
        trust["trust"] = {"trust_anchors": read_pem(anchors, "anchors").decode()}
    try:
        with (
            local_context(c2pa, trust) as context,
            c2pa.Reader(kind_of(content), io.BytesIO(content), context=context) as reader,
        ):
            store, state = json.loads(reader.json()), reader.get_validation_state()
    except c2pa.C2paError as error:
        state = STATES.get(str(error).partition(":")[0], "changed")
        return Credentials(state, () if state == "missing" else (first_line(error),))
    state = {"Trusted": "trusted", "Valid": "untrusted"}.get(str(state), "changed")
    active = store["manifests"].get(store["active_manifest"])
    if active is None:
        return Credentials("changed", ("the manifest that the file names is not in it",))
    assertions = active.get("assertions", [])
    problems, row, actions = list[str](), dict[str, Any](), list[Mapping[str, Any]]()
    for item in assertions:
        try:
            if item["label"] == FIELDS:
                row = signed_row(item.get("data"))
            elif item["label"].startswith("c2pa.actions"):
                actions += actions_of(item.get("data"))
        except ValueError as error:
            problems.append(str(error))
            state = "changed" if state == "changed" else "unreadable"
    parents = [
        {"title": item.get("title", ""), "signer": signer_of(store["manifests"].get(item.get("active_manifest"), {}))}
        for item in active.get("ingredients", [])
        if item.get("relationship") == "parentOf"
    ]
    results = store.get("validation_results", {}).get("activeManifest", {}).get("failure", [])
    return Credentials(
        state,
        (*dict.fromkeys(item["code"] for item in results), *problems),
        signer_of(active),
        row,
        tuple(actions),
        tuple(parents),
        store["active_manifest"],
    )


def signer_of(manifest: Mapping[str, Any]) -> str:
    """Returns the name in the certificate that signed a manifest."""
    return manifest.get("signature_info", {}).get("common_name", "")


def row_data(row: Mapping[str, Any]) -> dict[str, str]:
    """Returns the data of the assertion with a row."""
    return {"row": json.dumps(dict(row), default=str)}


def signed_row(data: Any) -> dict[str, Any]:
    """Returns the row of the table in the data of its assertion. Raises ValueError for data of another form."""
    text = data.get("row") if isinstance(data, dict) else None
    if not isinstance(text, str):
        raise ValueError(f"the assertion {FIELDS} has no row as text")
    row = parse_json(text, "the signed row")
    if not isinstance(row, dict):
        raise ValueError("the signed row is not a JSON object")
    try:
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:  # infinite numbers, half of a surrogate pair
        raise ValueError(f"the signed row has values that are not of JSON: {first_line(error)}") from None
    return row


def actions_of(data: Any) -> list[dict[str, Any]]:
    """Returns the actions in the data of their assertion, without the links inside of the file. Raises ValueError for
    data of another form."""
    listed = data.get("actions", []) if isinstance(data, dict) else None
    if not isinstance(listed, list) or not all(isinstance(item, dict) and "action" in item for item in listed):
        raise ValueError("the signed actions are not a list of objects with a name")
    found = []
    for item in listed:
        parameters = item.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise ValueError("the parameters of a signed action are not an object")
        kept = {name: value for name, value in parameters.items() if name != "ingredients"}
        said = {"action": item["action"], "digitalSourceType": item.get("digitalSourceType", ""), "parameters": kept}
        found.append({name: value for name, value in said.items() if value})
    return found
