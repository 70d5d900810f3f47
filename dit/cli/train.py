"""Trains one run, from a config to a run directory."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before the imports below, which take seconds, the command line is checked
    from dit.cli.front import front_door

    front_door("train", "dit.cli.train:job", sweep_end="dit.cli.runs:end_sweep")
    sys.exit()

import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment
from omegaconf import DictConfig

from dit.checkpoints.native import BASE, CONFIG, check_fit, checkpoints_of, find_checkpoint, read_checkpoint
from dit.checkpoints.snapshots import remove_later
from dit.cli.quiet import quiet
from dit.cli.then_evaluate import evaluate_run, sweep_of
from dit.data.module import PictureData
from dit.distributed import destroy_process_group, in_submitit_job
from dit.errors import first_line
from dit.files import ERROR, write_atomic
from dit.layers.embeddings import time_embeddings
from dit.plain_values import plain
from dit.training import budget, optimized_metric, prior_pictures, run_directory
from dit.training.absolute_paths import make_absolute
from dit.training.checkpoints import AtomicCheckpointIO, Checkpoints, Stamp, checkpoint_to_resume
from dit.training.diffusion import DiffusionModule
from dit.training.inherit import inherit
from dit.training.interruption import Interrupted, Interruption, requeue
from dit.training.loggers import MetricsCsv, wandb_logger, wandb_run
from dit.training.precision import precision_here
from dit.training.previews import Previews
from dit.training.resume import check_same
from dit.training.summary import Summary, finish, summarize
from dit.training.tasks import TASKS
from dit.training.trainer import trainer_options
from dit.trust import give_consent


def own_script() -> str:
    """Returns the script that starts this command: in a process of a sweep's launcher, argv has another."""
    checkout = Path(__file__).parents[2] / "train.py"
    return str(checkout if checkout.is_file() else Path(sys.executable).with_name("dit-train"))


@contextmanager
def single_job(cfg: DictConfig, folder: Path) -> Iterator[None]:
    """Context in which the processes that Lightning starts, by running this command again, get this job: its overrides
    instead of those of the whole sweep, and the directory that is already chosen."""
    argv, ours = sys.argv, {run_directory.SHARED: str(folder)}
    if run_directory.in_sweep():
        hydra = HydraConfig.get()
        own = [
            w for s in hydra.runtime.config_sources if s.provider == "command-line" for w in ("--config-dir", s.path)
        ]
        sys.argv = [own_script(), "--config-name", str(hydra.job.config_name), *own, *hydra.overrides.task]
    lightnings = (
        "LOCAL_RANK",
        "NODE_RANK",
        "WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
    )  # Lightning sets them and does not unset them
    left = () if "LOCAL_RANK" in os.environ else lightnings
    os.environ |= ours
    try:
        yield
    finally:
        sys.argv = argv
        for name in (*ours, *left):
            os.environ.pop(name, None)
        destroy_process_group()


def build_callbacks(cfg: DictConfig, config: dict[str, Any], interruption: Interruption) -> list[L.Callback]:
    """Returns the config's callbacks in its order, with `Checkpoints` last, so that it saves the state of the others.
    A callback with every=null or patience=null is off."""
    enabled = [
        c for c in cfg.callbacks.values() if c is not None and None not in (c.get("every", 1), c.get("patience", 1))
    ]
    built = [instantiate(c, _convert_="all") for c in enabled]
    name = cfg.get("optimized_metric")
    checks = [] if name is None else [optimized_metric.MetricCheck(name)]
    return sorted([Stamp(config), interruption, *checks, *built], key=lambda c: isinstance(c, Checkpoints))


def build_trainer(cfg: DictConfig, data: PictureData, folder: Path, csv: MetricsCsv, callbacks: Any) -> L.Trainer:
    pictures = min(len(data.train), data.train_limit or len(data.train))
    options = trainer_options(plain(cfg.trainer), pictures, cfg.batch_size)
    launchers = external_launcher()
    trainer = instantiate(
        options,
        logger=csv,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO(), *launchers],
        default_root_dir=str(folder),
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
    )
    for launcher in launchers:
        launcher.validate_settings(trainer.num_devices, trainer.num_nodes)
    return trainer


def external_launcher() -> list[ClusterEnvironment]:
    """Returns the environment of processes that srun, torchrun or submitit has started; nothing in other processes."""
    if SLURMEnvironment.detect():  # its requeueing would save in the middle of a step
        return [SLURMEnvironment(auto_requeue=False)]
    return [TorchElasticEnvironment()] if TorchElasticEnvironment.detect() or in_submitit_job() else []


def restore_init(cfg: DictConfig, folder: Path) -> None:
    """Sets `init` to that of the run that is resumed, if its checkpoints hold only an adapter and the command does not
    repeat it."""
    path = checkpoint_to_resume(cfg.resume, folder) if cfg.resume is not None and cfg.init is None else None
    checkpoint = {} if path is None else read_checkpoint(path, whole=False)
    if checkpoint.get(BASE) is not None:
        cfg.init = checkpoint[CONFIG]["init"]


def check_base(module: L.LightningModule, base: dict[str, str] | None, path: Path) -> None:
    """Raises ValueError if the weights under an adapter are others than those of the run that is resumed."""
    own = getattr(module, "base", None)
    if own is not None and base is not None and own["fingerprint"] != base["fingerprint"]:
        raise ValueError(
            f"{path} holds only an adapter, and init={own['path']} has other weights now than those it was trained on: "
            f"{own['fingerprint']}, not {base['fingerprint']}; put them back there"
        )


def resume_from(
    cfg: DictConfig, folder: Path, module: L.LightningModule, csv: MetricsCsv
) -> tuple[Path | None, dict[str, Any] | None]:
    """Returns the checkpoint to resume from and its entry in environment.json. Raises ValueError if it belongs to
    another model, or if its config differs and `resume_override` is false."""
    path = None if cfg.resume is None else checkpoint_to_resume(cfg.resume, folder)
    if path is None:
        if cfg.resume is not None:
            print(f"nothing to resume below {folder.parent}: starting at step 0", file=sys.stderr)
        elif checkpoints_of(folder):
            raise ValueError(f"{folder} holds a run already; continue it with resume=auto, or choose another run_dir")
        return None, None
    checkpoint = read_checkpoint(path, whole=False)
    changed = check_same(checkpoint[CONFIG], plain(cfg), cfg.resume_override)
    if cfg.init is None:
        cfg.init = checkpoint[CONFIG].get("init")
    check_base(module, checkpoint.get(BASE), path)
    check_fit(module.state_dict(), checkpoint["state_dict"])
    step = int(checkpoint["global_step"])
    csv.resume_at(step)
    if run_directory.is_first():
        new = "".join(f", {key}={value} instead of {old}" for key, (old, value) in changed.items())
        print(f"resuming {path} at step {step}{new}", file=sys.stderr)
    return path, {
        "checkpoint": str(path),
        "step": step,
        "changed": {key: {"from": old, "to": value} for key, (old, value) in changed.items()},
    }


def report_fit(cfg: DictConfig, module: L.LightningModule, resumed: dict[str, Any] | None) -> None:
    """Prints the error of the fit for `adapter.clock`, where a run begins with one."""
    if resumed is None and run_directory.is_first():
        for _, time in time_embeddings(module):
            if time.fit_error is not None:
                clock = f"adapter.clock={cfg.adapter.clock:g}"
                print(f"{clock}: the refitted time embedding is off by {time.fit_error:.1%}", file=sys.stderr)


def job(cfg: DictConfig) -> float | None:
    """Trains, and returns the metric that `optimized_metric` names to Hydra's sweeper; None if it is null, and on other
    ranks than 0. Raises ValueError if the run has no such metric, or if a sweeper that searches is chosen without
    one."""
    name = cfg.get("optimized_metric")
    optimized_metric.check_sweeper(name)
    folder = train(cfg)
    return None if name is None or not run_directory.is_first() else optimized_metric.value_of(folder, name)


def train(cfg: DictConfig) -> Path:
    """Trains, writes summary.json, and prints the run's directory as the last line; then evaluates it, if the config
    says so (`then_evaluate`), and prints the results' directory.

    If a signal ends the run, raises SystemExit with status 128 + the signal's number."""
    quiet()
    if cfg.task not in TASKS:
        raise ValueError(f"task={cfg.task!r} is not one of {', '.join(TASKS)}")
    give_consent(cfg.get("trust"))
    make_absolute(cfg)
    inherit(cfg)
    prior_pictures.choose_folder(cfg)
    if cfg.resume not in (None, "auto") and not checkpoints_of(Path(cfg.resume)):
        find_checkpoint(cfg.resume, whole=False)
    sweep = sweep_of(cfg)
    interruption = Interruption(plain(cfg.trainer).get("max_time"))
    folder = run_directory.choose(cfg)
    try:
        with interruption.listening(), run_directory.locked(folder), single_job(cfg, folder):
            if cfg.resume == "auto" and run_directory.is_finished(folder) and run_directory.same_config(folder, cfg):
                print(f"{folder} is finished and not repeated", file=sys.stderr)
            else:
                finish(folder, fit(cfg, folder, interruption))
    except Interrupted as interrupted:
        report_interruption(folder, interrupted)
        if interrupted.status:
            requeue(cfg.resume, interrupted)
            sys.exit(interrupted.status)
        sweep = None
    if run_directory.is_first():
        print(folder, flush=True)
    if sweep is not None:
        evaluate_run(sweep, folder)
    return folder


def report_interruption(folder: Path, interrupted: Interrupted) -> None:
    """Prints how to continue, in one line, on rank 0. The others exit."""
    if not run_directory.is_first():  # only rank 0 prints; Lightning kills it if another rank fails
        sys.exit(0)
    kept = checkpoints_of(folder)
    how = f"at {kept[0].stem}; repeat the command with resume={folder} to go on" if kept else "before any checkpoint"
    print(f"\nstopped by {interrupted.cause} {how}", file=sys.stderr, flush=True)


def fit(cfg: DictConfig, folder: Path, interruption: Interruption) -> Summary | None:
    """Runs the trainer. Returns the summary on rank 0, None on the others."""
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    cfg.trainer.precision = precision_here(cfg.trainer.precision, cfg.trainer.accelerator)
    restore_init(cfg, folder)
    budget.prepare(cfg, folder)
    prior_pictures.make(cfg)
    module, data = TASKS[cfg.task](cfg, folder)
    csv = MetricsCsv(folder)
    path, resumed = resume_from(cfg, folder, module, csv)
    report_fit(cfg, module, resumed)
    config = plain(cfg)
    trainer = build_trainer(cfg, data, folder, csv, build_callbacks(cfg, config, interruption))
    wandb, failed = None, True
    if trainer.is_global_zero:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Previews):  # raises for a bad prompt before training starts
                assert isinstance(module, DiffusionModule)
                callback.read(module.pipeline, data)
        for name in ("summary.json", ERROR):  # from here on the run is not finished
            (folder / name).unlink(missing_ok=True)
        remove_later(folder, 0 if resumed is None else resumed["step"])  # snapshots of steps that are done again
        run_directory.describe(folder, config, resumed, data.description)
        group = cfg.wandb.group or (folder.parent.name if run_directory.in_sweep() else None)
        wandb = wandb_run(folder, cfg.wandb.project, cfg.wandb.mode, group, "train", config)
    if wandb is not None:
        trainer.loggers = [csv, wandb_logger(wandb)]
    try:
        trainer.fit(module, datamodule=data, ckpt_path=path, weights_only=True)
        summary = summarize(trainer, module, csv) if trainer.is_global_zero else None
        failed = False
        return summary
    except Interrupted:
        launcher = trainer.strategy.launcher
        if launcher is not None and not interruption.due:  # else all ranks end after the same step
            launcher.kill(signal.SIGKILL)
        raise
    except Exception as error:
        if trainer.is_global_zero:
            write_atomic(folder / ERROR, f"{type(error).__name__}: {first_line(error)}\n")
        raise
    finally:
        if wandb is not None:
            wandb.finish(exit_code=int(failed))
