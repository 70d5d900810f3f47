"""Says what a picture's file proves of its origin: `python -m dit.cli.verify FILE`."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dit.cli.front import front_door
from dit.cli.quoting import escaped


def file_as_override(words: list[str]) -> list[str]:
    """Returns the words of the command line with a file's path as file="PATH"."""
    return [word if "=" in word or word.startswith("-") else f'file="{escaped(word)}"' for word in words]


def credentials_of(cfg: DictConfig) -> dict[str, Any]:
    """Returns the Content Credentials. With a key of the watermark they may stay unread: then the remedy. Raises
    ValueError if they cannot be read, and without a key also if their extra is missing."""
    from dit.generation.credentials import EXTRA, read_credentials

    if cfg.key is not None and cfg.anchors is None and find_spec("c2pa") is None:
        return {"state": "unread", "problems": [EXTRA]}
    found = read_credentials(Path(cfg.file), cfg.anchors)
    return {
        "state": found.state,
        "problems": list(found.problems),
        "signer": found.signer,
        "fields": dict(found.fields),
    }


def verify(cfg: DictConfig) -> dict[str, Any]:
    """Prints as JSON what is found: the credentials, the IPTC source type, and with a key the watermark's p-value."""
    # Slow imports follow after the command line is checked.
    import numpy as np

    from dit.generation.watermark import detect, read_key
    from dit.picture_files import read
    from dit.plain_values import sizes

    pixels = np.ascontiguousarray(read(cfg.file).transpose(1, 2, 0))
    found: dict[str, Any] = {"file": str(cfg.file), "credentials": credentials_of(cfg)}
    if cfg.key is not None:
        size = None if cfg.size is None else sizes(cfg.size, "size")[0]
        mark = detect(pixels, read_key(cfg.key), size)
        found["watermark"] = {
            "p_value": mark.p_value,
            "tests": mark.tests,
            "flip": mark.flip,
            "offset": list(mark.offset),
        }
    print(json.dumps(found, indent=2, ensure_ascii=False), flush=True)
    return found


def main() -> None:
    sys.argv[1:] = file_as_override(sys.argv[1:])
    front_door("verify", "dit.cli.verify:verify")


if __name__ == "__main__":
    main()
