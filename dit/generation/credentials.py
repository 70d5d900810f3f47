"""Content Credentials (C2PA): a signed manifest in a picture's file that says that a model made it; IPTC's fields."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dit.errors import first_line

EXTRA = "Content Credentials need an extra: pip install 'dit[marks]'"
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
FIELDS = "org.dit.generation"  # the assertion with a row of the table
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    "Iptc4xmpExt:DigitalSourceType={source} Iptc4xmpExt:AISystemUsed={system}/></rdf:RDF></x:xmpmeta>"
)


@dataclass(frozen=True)
class Credentials:
    """What a file's credentials say. state: missing, trusted (signed by one of the given anchors), untrusted (intact,
    signed by someone else), or changed. problems: the codes of C2PA's validation that failed. fields: the row of the
    table that was signed. manifest: the id of the manifest."""

    state: str
    problems: tuple[str, ...] = ()
    signer: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
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
    """Signs PNG files with ES256. certificate: a PEM file with the chain, the signer's own certificate first; key: the
    PEM file of its private key. Raises ValueError for files that do not fit together and for an expired certificate."""

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

    def sign(self, png: bytes, row: Mapping[str, Any]) -> bytes:
        """Returns a PNG file with IPTC's fields and a signed manifest; its pixels and texts stay. row: what the table
        says of the picture. Raises ValueError if the file cannot be signed, also after the certificate expires."""
        self._check_expiry()
        system = f"dit {row.get('model', '')}".strip()
        info = self.c2pa.C2paSignerInfo(b"es256", self.chain, self.key, None)
        manifest = {
            "claim_generator_info": [{"name": "dit"}],
            "title": str(row.get("name", "picture")),
            "assertions": [{"label": FIELDS, "data": json.loads(json.dumps(dict(row), default=str))}],
        }
        settings = self.c2pa.Settings.from_dict({"builder": {"thumbnail": {"enabled": False}}})
        try:
            with self.c2pa.Context(settings) as context, self.c2pa.Builder(manifest, context) as builder:
                kinds = self.c2pa.C2paDigitalSourceType
                builder.set_intent(self.c2pa.C2paBuilderIntent.CREATE, kinds.TRAINED_ALGORITHMIC_MEDIA)
                signed = io.BytesIO()
                with self.c2pa.Signer.from_info(info) as signer:
                    builder.sign(signer, "image/png", io.BytesIO(with_iptc(png, system)), signed)
        except self.c2pa.C2paError as error:
            raise ValueError(f"the picture cannot be signed: {first_line(error)}") from None
        return signed.getvalue()


def with_iptc(png: bytes, system: str) -> bytes:
    """Returns a PNG file with DigitalSourceType and AISystemUsed as XMP; its pixels and texts stay."""
    picture = Image.open(io.BytesIO(png))
    info = PngInfo()
    for name, text in getattr(picture, "text", {}).items():
        info.add_text(name, text)
    info.add_itxt("XML:com.adobe.xmp", XMP.format(source=quoteattr(SOURCE_TYPE), system=quoteattr(system)))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def manifest_id(png: bytes) -> str:
    """Returns the id of the manifest in the content of a PNG file, or "" if it has none."""
    if b"caBX" not in png:  # the name of its chunk
        return ""
    with library().Reader("image/png", io.BytesIO(png)) as reader:
        return str(json.loads(reader.json())["active_manifest"])


def kind_of(content: bytes) -> str:
    """Returns the media type of the content of a picture's file. Raises ValueError if it is no picture."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return str(picture.get_format_mimetype())
    except OSError:
        raise ValueError("this is no picture: it must be a PNG, JPEG or WebP file") from None


def read_credentials(file: Path | bytes, anchors: str | Path | None = None) -> Credentials:
    """Returns the credentials of a picture's file, given its path or its content. anchors: a PEM file of certificates
    whose signatures are trusted. Raises ValueError if the extra is missing or the anchors cannot be read."""
    c2pa = library()
    place = (file,) if isinstance(file, Path) else (kind_of(file), io.BytesIO(file))
    trust: dict[str, Any] = {"verify": {"verify_trust": anchors is not None}}
    if anchors is not None:
        trust["trust"] = {"trust_anchors": read_pem(anchors, "anchors").decode()}
    try:
        with c2pa.Context(c2pa.Settings.from_dict(trust)) as context, c2pa.Reader(*place, context=context) as reader:
            store, state = json.loads(reader.json()), reader.get_validation_state()
    except c2pa.C2paError as error:
        if "ManifestNotFound" in type(error).__name__ + str(error) or "no JUMBF data" in str(error):
            return Credentials("missing")
        return Credentials("changed", (first_line(error),))
    active = store["manifests"][store["active_manifest"]]
    rows = [item["data"] for item in active.get("assertions", []) if item["label"] == FIELDS]
    results = store.get("validation_results", {}).get("activeManifest", {}).get("failure", [])
    problems = tuple(dict.fromkeys(item["code"] for item in results))
    names = {"Trusted": "trusted", "Valid": "untrusted"}
    signer = active.get("signature_info", {}).get("common_name", "")
    return Credentials(
        names.get(str(state), "changed"), problems, signer, rows[0] if rows else {}, store["active_manifest"]
    )
