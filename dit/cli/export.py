"""A run's backbone for others: `python -m dit.cli.export ckpt=RUN out=FOLDER`."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from dit.cli.front import front_door


def export(cfg: DictConfig) -> Path:
    """Writes a diffusers folder, or a file of the original DiT code; prints the folder as the last line."""
    # This file is a front door itself: what takes seconds to import waits until the command line is checked.
    from dit.checkpoints.foreign import write_folder, write_original
    from dit.cli.build import load_run
    from dit.cli.quiet import quiet

    quiet()
    writers = {"diffusers": write_folder, "original": write_original}
    if cfg.format not in writers:
        raise ValueError(f"format={cfg.format} is not one of {', '.join(writers)}")
    pipeline, *_ = load_run(cfg.ckpt, cfg.weights, "cpu")
    folder = Path(cfg.out).absolute()
    writers[cfg.format](pipeline.backbone, folder, pipeline.latent_shape[-1])
    print(folder, flush=True)
    return folder


if __name__ == "__main__":
    front_door("export", "dit.cli.export:export")
