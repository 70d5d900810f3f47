"""A run's backbone for others: `python -m dit.cli.export ckpt=RUN out=FOLDER`."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from dit.cli.front import front_door


def export(cfg: DictConfig) -> Path:
    """Writes a diffusers folder; prints it as the last line."""
    # This file is a front door itself: what takes seconds to import waits until the command line is checked.
    from dit.checkpoints.foreign import write_folder
    from dit.cli.build import load_run
    from dit.cli.quiet import quiet

    quiet()
    pipeline, *_ = load_run(cfg.ckpt, cfg.weights, "cpu")
    folder = Path(cfg.out).absolute()
    write_folder(pipeline.backbone, folder, pipeline.latent_shape[-1])
    print(folder, flush=True)
    return folder


if __name__ == "__main__":
    front_door("export", "dit.cli.export:export")
