"""Scores of a trained run: the sweep of evaluate.py, from a config to a directory of results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dit import __version__
from dit.cli.build import check_second_network, load_run, numbers
from dit.cli.quiet import quiet
from dit.cli.run_directory import environment, plain
from dit.evaluation.likelihood import BitsPerDim
from dit.evaluation.report import write_report
from dit.evaluation.sweep import Cell, Protocol, Row, Sweep
from dit.metrics.base import ImageMetric
from dit.pipeline import Pipeline, Recipe
from dit.training.loggers import wandb_run
from dit.types import CaptionedImages


def cells_of(cfg: DictConfig) -> list[Cell]:
    """The grid of samplers, steps and guidance scales, without duplicates."""
    grid, samplers = instantiate(cfg.grid), instantiate(cfg.sampler)
    cells = []
    for name, sampler in samplers.items():
        detail = json.dumps(OmegaConf.to_container(cfg.sampler[name], resolve=True), sort_keys=True)
        for scale in numbers(cfg.guidance.scale, "guidance.scale", float):
            guidance = instantiate(cfg.guidance, scale=float(scale))
            for steps in numbers(cfg.steps, "steps"):
                cells.append(Cell(name, steps, float(scale), Recipe(sampler, grid, steps, guidance), detail))
    return list({cell.key: cell for cell in cells}.values())


def prompts_of(cfg: DictConfig, real: CaptionedImages) -> list[str]:
    """n prompts: the config's own, repeated, or the first held-out captions."""
    for name in ("n", "shown", "references"):
        if cfg[name] < 1:
            raise ValueError(f"{name}={cfg[name]} must be at least 1")
    own = [cfg.prompts] if isinstance(cfg.prompts, str) else cfg.prompts
    given = real.captions if own is None else [str(prompt) for prompt in own]
    if not given:
        raise ValueError("the list of prompts is empty; give at least one, or leave prompts out for held-out captions")
    return [given[i % len(given)] for i in range(cfg.n)]


def weights_digest(pipeline: Pipeline) -> str:
    """A hash of the weights that are sampled from."""
    digest = hashlib.sha256()
    for name, value in sorted(pipeline.backbone.state_dict().items()):
        digest.update(name.encode() + value.cpu().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()[:16]


def card(
    cfg: DictConfig,
    metrics: DictConfig,
    pipeline: Pipeline,
    path: Path,
    step: int,
    real: CaptionedImages,
    prompts: Sequence[str],
) -> dict[str, Any]:
    """All that the scores of this sweep depend on, besides a cell's own sampler, steps and scale."""
    guidance = OmegaConf.to_container(cfg.guidance, resolve=True)
    assert isinstance(guidance, dict)
    return {
        "checkpoint": f"{path.parents[1].name}/{path.name}",
        "step": step,
        "weights": cfg.weights,
        "weights_sha256": weights_digest(pipeline),
        "autoencoder": pipeline.autoencoder.fingerprint,
        "text_encoder": pipeline.text_encoder.fingerprint,
        "grid": OmegaConf.to_container(cfg.grid, resolve=True),
        "guidance": {key: value for key, value in guidance.items() if key != "scale"},
        "n": len(prompts),
        "seed": cfg.seed,
        "prompts_sha256": hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16],
        "references": min(cfg.references, len(real)),
        "reference_data": real.fingerprint,
        "metrics": OmegaConf.to_container(metrics, resolve=True),
        "uint8": "round",
        "shown": cfg.shown,
        "dit": __version__,
        "packages": environment()["packages"],
    }


def log_to_wandb(cfg: DictConfig, folder: Path, rows: Sequence[Row], pictures: dict[str, bytes]) -> None:
    """The rows as a table, plots and grids as images, in a run of its own."""
    run = wandb_run(folder, cfg.wandb.project, cfg.wandb.mode, cfg.wandb.group, "evaluate", plain(cfg))
    if run is None:
        return
    import io

    import wandb
    from PIL import Image

    try:
        table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
        images = {name: wandb.Image(Image.open(io.BytesIO(data))) for name, data in pictures.items()}
        run.log({"sweep": table, **images})
    finally:
        run.finish()


def evaluate(cfg: DictConfig) -> Path:
    """Runs the missing cells, writes the report, and prints the results' directory as the last line."""
    quiet()
    pipeline, run_cfg, path, step = load_run(cfg.ckpt, cfg.weights, cfg.device)
    cfg.grid = cfg.grid or run_cfg.grid
    check_second_network(cfg.guidance, run_cfg)
    cells = cells_of(cfg)
    for cell in cells:
        pipeline.check(cell.recipe)
    real = instantiate(run_cfg.data.module.val)
    prompts = prompts_of(cfg, real)
    pipeline.encode(prompts)
    chosen = cfg.metric or run_cfg.metric
    made = {name: instantiate(m) for name, m in chosen.items()}
    metrics = {name: m.to(pipeline.device) for name, m in made.items() if isinstance(m, ImageMetric)}
    if not metrics:
        raise ValueError("there is no metric of pictures to score with; choose some, e.g. metric=[prompt_accuracy]")
    protocol = Protocol(
        prompts,
        cfg.seed,
        min(cfg.shown, len(prompts)),
        card(cfg, chosen, pipeline, path, step, real, prompts),
    )
    folder = Path(cfg.out) if cfg.out else path.parents[1] / "evaluations" / protocol.key
    sweep = Sweep(pipeline, metrics, real, cfg.references, protocol, folder.absolute(), cfg.batch_size)
    sweep.score_model([m for m in made.values() if isinstance(m, BitsPerDim)])
    rows = sweep.run(cells)
    pictures = write_report(sweep, cells, rows)
    log_to_wandb(cfg, folder, rows, pictures)
    print(folder.absolute(), flush=True)
    return folder
