"""What the file of a picture proves of its origin: its Content Credentials, and a watermark."""

from __future__ import annotations

from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from dit.generation.credentials import EXTRA, opened, read_credentials
from dit.generation.marks import Mark, Origin
from dit.picture_files import read, read_bytes

Found = dict[str, Any]
KINDS = ("image/png", "image/jpeg", "image/webp")


def findings(
    file: Path | bytes,
    anchors: str | Path | None = None,
    mark: Mark | None = None,
    size: tuple[int, int] | None = None,
    origin: Origin | None = None,
) -> Found:
    """Returns what the file of a picture, its path or its content, proves: `credentials`, and with a mark `watermark`.

    anchors: a PEM file of certificates whose signatures are trusted. size: (width, height) that the picture had when it
    was made, if it was resized or cropped. origin: for marks that are tested through the model. The credentials stay
    unread if their extra is missing and there is a mark to test for. Raises ValueError if the file is no picture, and
    if the extra is missing otherwise.
    """
    picture = read(file) if isinstance(file, Path) else read_bytes(file, "that was sent")
    found: Found = {"credentials": credentials(file, anchors, mark)}
    if mark is not None:
        detection = mark.detect(np.ascontiguousarray(picture.transpose(1, 2, 0)), size, origin)
        found["watermark"] = {"found": detection.p_value < mark.rate, "rate": mark.rate, **asdict(detection)}
    return found


def credentials(file: Path | bytes, anchors: str | Path | None, mark: Mark | None) -> Found:
    if mark is not None and anchors is None and find_spec("c2pa") is None:
        return {"state": "unread", "problems": [EXTRA]}
    found = asdict(read_credentials(file, anchors))
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def check_pixels(content: bytes, most: int) -> None:
    """Raises ValueError if a picture has more than `most` pixels, before it is decoded, or is no PNG, JPEG or WebP
    file."""
    kind, (width, height) = opened(content)
    if kind not in KINDS:
        raise ValueError(f"the picture is {kind}: it must be a PNG, JPEG or WebP file")
    if width * height > most:
        raise ValueError(f"the picture has {width}x{height} pixels; at most {most} are verified")


def in_words(found: Found) -> str:
    """Returns findings in sentences."""
    about = found["credentials"]
    signer = about.get("signer") or "somebody without a name"
    said = {
        "missing": "It has no Content Credentials: they were removed, or it was never signed.",
        "unread": "Its Content Credentials cannot be read here.",
        "unreadable": f"Its Content Credentials cannot be read: {', '.join(about['problems'])}.",
        "trusted": f"Signed by {signer}, whom this server trusts, and unchanged since.",
        "untrusted": f"Signed by {signer} and unchanged since; this server does not know that signer.",
        "changed": f"Changed after it was signed, or the signature is false: {', '.join(about['problems'])}.",
    }[about["state"]]
    trusted = about["state"] == "trusted"
    if made := about.get("fields"):
        claim = "Made" if trusted else "It claims to be made"
        said += f" {claim} from the prompt {made.get('prompt')!r} with the seed {made.get('seed')}."
    if parents := about.get("parents"):
        claim = "It is" if trusted else "It claims to be"
        said += f" {claim} an edit of {', '.join(str(parent['title']) for parent in parents)}."
    if mark := found.get("watermark"):
        what = "was found" if mark["found"] else "was not found, which proves nothing"
        said += f" This server's watermark {what} (p = {mark['p_value']:.1g})."
    return said
