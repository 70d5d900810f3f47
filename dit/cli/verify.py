"""Says what a picture's file proves of its origin: `python -m dit.cli.verify FILE`."""

from __future__ import annotations

import json
import sys
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
    from hydra.utils import instantiate

    from dit.generation.verification import findings
    from dit.plain_values import sizes

    mark, size = (None, None) if cfg.marks is None else (instantiate(cfg.marks), cfg.size)
    size = None if size is None else sizes(size, "size")[0]
    origin = None if mark is None else origin_of(cfg)
    found = {"file": str(cfg.file), **findings(Path(cfg.file), cfg.anchors, mark, size, origin)}
    print(json.dumps(found, indent=2, ensure_ascii=False), flush=True)
    return found


def main() -> None:
    sys.argv[1:] = file_as_override(sys.argv[1:])
    front_door("verify", "dit.cli.verify:verify")


if __name__ == "__main__":
    main()
