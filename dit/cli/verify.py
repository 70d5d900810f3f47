"""Says what a picture's file proves of its origin: `python -m dit.cli.verify FILE`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from dit.cli.front import front_door
from dit.cli.quoting import escaped

if TYPE_CHECKING:
    from dit.generation.marks import Origin


def file_as_override(words: list[str]) -> list[str]:
    """Returns the words of the command line with a file's path as file="PATH"."""
    return [word if "=" in word or word.startswith("-") else f'file="{escaped(word)}"' for word in words]


def credentials_of(cfg: DictConfig) -> dict[str, Any]:
    """Returns the Content Credentials. With `marks` they may stay unread: then the remedy. Raises ValueError if they
    cannot be read, and without `marks` also if their extra is missing."""
    from dit.generation.credentials import EXTRA, read_credentials

    if cfg.marks is not None and cfg.anchors is None and find_spec("c2pa") is None:
        return {"state": "unread", "problems": [EXTRA]}
    found = read_credentials(Path(cfg.file), cfg.anchors)
    return {
        "state": found.state,
        "problems": list(found.problems),
        "signer": found.signer,
        "fields": dict(found.fields),
    }


def origin_of(cfg: DictConfig) -> Origin | None:
    """Returns the model, the prompt and the seeds of a mark in the noise, or None without ckpt. Raises ValueError if
    seeds are missing."""
    from dit.generation.marks import Origin
    from dit.generation.work import seeds_of
    from dit.runs import load_run

    if cfg.ckpt is None:
        return None
    if cfg.seeds is None:
        raise ValueError("seeds are missing: say which seeds the picture may have, seeds=3 or seeds=0-99")
    run = load_run(cfg.ckpt, cfg.weights, cfg.device, cfg.trust)
    return Origin(run.pipeline, run.recipe().grid, cfg.prompt, seeds_of(cfg.seeds))


def verify(cfg: DictConfig) -> dict[str, Any]:
    """Prints as JSON what is found: the credentials, and with `marks` the p-value of the watermark."""
    # Slow imports follow after the command line is checked.
    import numpy as np
    from hydra.utils import instantiate

    from dit.picture_files import read
    from dit.plain_values import sizes

    pixels = np.ascontiguousarray(read(cfg.file).transpose(1, 2, 0))
    found: dict[str, Any] = {"file": str(cfg.file), "credentials": credentials_of(cfg)}
    if cfg.marks is not None:
        mark, size = instantiate(cfg.marks), None if cfg.size is None else sizes(cfg.size, "size")[0]
        detection = mark.detect(pixels, size, origin_of(cfg))
        found["watermark"] = {"found": detection.p_value < mark.rate, "rate": mark.rate, **asdict(detection)}
    print(json.dumps(found, indent=2, ensure_ascii=False), flush=True)
    return found


def main() -> None:
    sys.argv[1:] = file_as_override(sys.argv[1:])
    front_door("verify", "dit.cli.verify:verify")


if __name__ == "__main__":
    main()
