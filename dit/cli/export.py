"""A run's backbone for others: `python -m dit.cli.export ckpt=RUN out=FOLDER`."""

from __future__ import annotations

import sys
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
    pipeline, run_cfg, *_ = load_run(cfg.ckpt, cfg.weights, "cpu")
    folder = Path(cfg.out).absolute()
    writers[cfg.format](pipeline.backbone, folder, pipeline.latent_shape[-1])
    how = [str(run_cfg[part]["_target_"]).rpartition(".")[2] for part in ("path", "prediction")]
    print(f"note: weights alone; sample them on the path {how[0]} as the prediction {how[1]}", file=sys.stderr)
    if pipeline.text_encoder.sizes.get("classes", 1000) != 1000 and cfg.format == "diffusers":
        print("warning: diffusers' DiTPipeline takes 1000 classes for granted; use the model's class", file=sys.stderr)
    print(folder, flush=True)
    return folder


if __name__ == "__main__":
    front_door("export", "dit.cli.export:export")
