"""Makes certificates to try signing with: `python -m dit.cli.authority out=FOLDER`."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from dit.cli.front import front_door


def authority(cfg: DictConfig) -> Path:
    """Writes the certificates and the key of a local test authority; prints the folder as the last line."""
    from dit.generation.authority import write_authority

    folder = Path(cfg.out).absolute()
    write_authority(folder, cfg.days)
    print(folder, flush=True)
    return folder


if __name__ == "__main__":
    front_door("authority", "dit.cli.authority:authority")
