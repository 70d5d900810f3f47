"""Exports a run's backbone: `python -m dit.cli.export ckpt=RUN out=FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig

from dit.cli.front import front_door


def export(cfg: DictConfig) -> Path:
    """Writes a folder for diffusers, a file for the original DiT code, or all weights in one safetensors file; prints
    the folder as the last line."""
    # Slow imports follow after the command line is checked.
    from hydra.utils import instantiate

    from dit.checkpoints.foreign import write_original, write_weights
    from dit.checkpoints.pipeline_folder import write_pipeline
    from dit.cli.quiet import quiet
    from dit.runs import load_run, merged_backbone

    quiet()
    if cfg.format not in ("diffusers", "original", "safetensors"):
        raise ValueError(f"format={cfg.format} is not one of diffusers, original, safetensors")
    loaded = load_run(cfg.ckpt, cfg.weights, "cpu", cfg.trust)
    run = loaded.pipeline
    backbone, folder, side = merged_backbone(loaded), Path(cfg.out).absolute(), run.latent_shape[-1]
    if cfg.format == "safetensors":
        write_weights(backbone, folder)
        notes = [f"only weights, {type(backbone).__name__}'s, by dit's own names"]
    elif cfg.format == "original":
        write_original(backbone, folder, side)
        how = [type(part).__name__ for part in (run.path, run.prediction)]
        notes = [f"only weights; sample them on the path {how[0]} as the prediction {how[1]}"]
    else:
        grid = instantiate(loaded.config.grid)
        notes = write_pipeline(
            folder, backbone, run.path, run.prediction, grid, run.text_encoder, run.autoencoder, side
        )
    notes += [] if loaded.posthoc is None else [f"{cfg.weights}: {loaded.posthoc}"]
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(folder, flush=True)
    return folder


if __name__ == "__main__":
    front_door("export", "dit.cli.export:export")
