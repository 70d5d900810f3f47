"""Exports a run's backbone: `python -m dit.cli.export ckpt=RUN out=FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from dit.cli.front import front_door

if TYPE_CHECKING:
    from dit.runs import Run


def export(cfg: DictConfig) -> Path:
    """Writes a folder for diffusers, a file for the original DiT code, all weights in one safetensors file, or only the
    adapter; with a licence also a model card. Prints the folder as the last line."""
    # Slow imports follow after the command line is checked.
    from dit.checkpoints.lora import write_adapter
    from dit.cli.quiet import quiet
    from dit.files import write_atomic
    from dit.plain_values import plain
    from dit.runs import load_run

    quiet()
    if cfg.format not in ("diffusers", "original", "safetensors", "adapter"):
        raise ValueError(f"format={cfg.format} is not one of diffusers, original, safetensors, adapter")
    run, folder = load_run(cfg.ckpt, cfg.weights, "cpu", cfg.trust, plain(cfg)["adapters"]), Path(cfg.out).absolute()
    run.scale_adapters(cfg.adapter_scale)
    if cfg.licence is not None:
        from dit.evaluation.model_card import check_licence, model_card, provenance_of

        check_licence(cfg.licence)  # before anything is written
        provenance_of(run)
    if cfg.format != "adapter":
        notes = write_model(run, cfg.format, folder)
    elif run.adapters is None:
        raise ValueError(f"format=adapter: {cfg.ckpt} has no low-rank adapter; add one with adapters=PATH")
    else:
        notes = [write_adapter(run.adapters.only, run.pipeline.backbone, folder)]
    notes += [] if run.posthoc is None else [f"{cfg.weights}: {run.posthoc}"]
    if cfg.licence is not None:
        library = "diffusers" if cfg.format in ("diffusers", "adapter") else "dit"
        card = model_card(run, folder.name, cfg.weights, cfg.licence, library, notes)
        write_atomic(folder / "README.md", card)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(folder, flush=True)
    return folder


def write_model(run: Run, format: str, folder: Path) -> list[str]:
    """Writes the model of a run, with its adapters in the weights. Returns notes for the user, one sentence each."""
    from hydra.utils import instantiate

    from dit.checkpoints.foreign import write_original, write_weights
    from dit.checkpoints.pipeline_folder import write_pipeline
    from dit.layers.embeddings import added_inputs
    from dit.runs import merged_backbone

    parts, backbone = run.pipeline, merged_backbone(run, own_names=format == "safetensors")
    side = parts.latent_shape[-1]
    if format == "safetensors":
        further = added_inputs(backbone)
        inputs = f", with the inputs {', '.join(further)}" if further else ""
        clock = OmegaConf.select(run.config, "adapter.clock")
        write_weights(backbone, folder, None if clock is None else {"adapter.clock": f"{clock:g}"})
        slower = "" if clock is None else f", for a network with adapter.clock={clock:g}: its time is {clock:g} t"
        return [f"only weights, {type(backbone).__name__}'s, by dit's own names{inputs}{slower}"]
    if format == "original":
        write_original(backbone, folder, side)
        how = [type(part).__name__ for part in (parts.path, parts.prediction)]
        return [f"only weights; sample them on the path {how[0]} as the prediction {how[1]}"]
    grid, encoders = instantiate(run.config.grid), (parts.text_encoder, parts.autoencoder)
    return write_pipeline(folder, backbone, parts.path, parts.prediction, grid, *encoders, side)


if __name__ == "__main__":
    front_door("export", "dit.cli.export:export")
