"""One training run, from a config to a run directory."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before the imports below, which take seconds, the command line is checked
    from dit.cli.front import front_door

    front_door("train", "dit.cli.train:train")
    sys.exit()

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from dit.checkpoints.native import check_fit, checkpoints_of, find_checkpoint, read_checkpoint
from dit.cli import run_directory
from dit.cli.build import TASKS
from dit.cli.quiet import quiet
from dit.files import write_atomic
from dit.training.checkpoints import AtomicCheckpointIO, Checkpoints, Stamp, checkpoint_to_resume
from dit.training.diffusion import DiffusionModule
from dit.training.loggers import MetricsCsv, wandb_logger, wandb_run
from dit.training.previews import Previews


@contextmanager
def job_of_its_own(cfg: DictConfig, folder: Path) -> Iterator[None]:
    """While it lasts, the processes that Lightning starts by running this command again find this job: its own
    overrides instead of the whole sweep's, and the directory that is chosen already."""
    argv, ours = sys.argv, {run_directory.SHARED: str(folder)}
    if run_directory.in_sweep():
        hydra = HydraConfig.get()
        own = [
            w for s in hydra.runtime.config_sources if s.provider == "command-line" for w in ("--config-dir", s.path)
        ]
        sys.argv = [argv[0], "--config-name", str(hydra.job.config_name), *own, *hydra.overrides.task]
    lightnings = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # set by it, and left
    left = () if "LOCAL_RANK" in os.environ else lightnings
    os.environ |= ours
    try:
        yield
    finally:
        sys.argv = argv
        for name in (*ours, *left):
            os.environ.pop(name, None)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def build_callbacks(cfg: DictConfig, plain: dict[str, Any]) -> list[L.Callback]:
    """The config's callbacks in its order, but the writer of checkpoints last, so that it saves what the others did.
    One with every=null is off."""
    wanted = [c for c in cfg.callbacks.values() if c is not None and c.get("every", 1) is not None]
    built = [instantiate(c, _convert_="all") for c in wanted]
    return sorted([Stamp(plain), *built], key=lambda c: isinstance(c, Checkpoints))


def resume_from(cfg: DictConfig, folder: Path, module: L.LightningModule, csv: MetricsCsv) -> Path | None:
    """The checkpoint to go on from. Raises ValueError when it is not of this model."""
    if cfg.resume is None:
        return None
    path = checkpoint_to_resume(cfg.resume, folder)
    if path is None:
        print(f"nothing to resume below {folder.parent}: starting at step 0", file=sys.stderr)
        return None
    checkpoint = read_checkpoint(path)
    check_fit(module, checkpoint["state_dict"])
    csv.resume_at(int(checkpoint["global_step"]))
    print(f"resuming {path} at step {checkpoint['global_step']}", file=sys.stderr)
    return path


def train(cfg: DictConfig) -> Path:
    """Trains, writes summary.json, and prints the run's directory as the last line."""
    quiet()
    if cfg.task not in TASKS:
        raise ValueError(f"task={cfg.task!r} is not one of {', '.join(TASKS)}")
    if cfg.resume not in (None, "auto"):
        find_checkpoint(cfg.resume)
    folder = run_directory.choose(cfg)
    if cfg.resume == "auto" and run_directory.is_finished(folder) and run_directory.same_config(folder, cfg):
        print(f"{folder} is finished and not repeated", file=sys.stderr)
        print(folder, flush=True)
        return folder
    with job_of_its_own(cfg, folder):
        summary = fit(cfg, folder)
    if summary is not None:
        write_atomic(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        shown = ", ".join(f"{k} {v:.4g}" for k, v in summary.items())
        print(f"{shown}\n{folder}", flush=True)
    return folder


def fit(cfg: DictConfig, folder: Path) -> dict[str, float] | None:
    """Runs the trainer; the summary on the first process, None on the others."""
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    module, data = TASKS[cfg.task](cfg, folder)
    plain = run_directory.plain(cfg)
    csv = MetricsCsv(folder)
    path = resume_from(cfg, folder, module, csv)
    if path is None and checkpoints_of(folder):
        raise ValueError(f"{folder} holds a run already; go on with it by resume=auto, or choose another run_dir")
    trainer = instantiate(
        cfg.trainer,
        logger=csv,
        callbacks=build_callbacks(cfg, plain),
        plugins=[AtomicCheckpointIO()],
        default_root_dir=str(folder),
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
    )
    wandb = None
    if trainer.is_global_zero:
        for callback in trainer.callbacks:
            if isinstance(callback, Previews):  # a prompt that cannot be read is told before anything is spent
                assert isinstance(module, DiffusionModule)
                callback.read(module.pipeline, data)
        run_directory.describe(folder, plain)
        group = cfg.wandb.group or (folder.parent.name if run_directory.in_sweep() else None)
        wandb = wandb_run(folder, cfg.wandb.project, cfg.wandb.mode, group, "train", plain)
    if wandb is not None:
        trainer.loggers = [csv, wandb_logger(wandb)]
    try:
        trainer.fit(module, datamodule=data, ckpt_path=path, weights_only=True)
        return summarize(trainer, module, csv) if trainer.is_global_zero else None
    finally:
        if wandb is not None:
            wandb.finish()


def summarize(trainer: L.Trainer, module: L.LightningModule, csv: MetricsCsv) -> dict[str, float]:
    """steps, parameters, the last value of every metric, and what callbacks have to add.

    A run that was killed after its last step has nothing left but to be scored; its values are those in metrics.csv.
    """
    last = csv.last() | {k: float(v) for k, v in trainer.callback_metrics.items()}
    last.pop("train/images_per_second", None)
    summary: dict[str, float] = {
        "steps": trainer.global_step,
        "parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
    }
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if hasattr(callback, "summary"):
            summary |= callback.summary()
    return summary | last
