"""Loggers: metrics.csv in the run's directory, and Weights & Biases if it is enabled."""

from __future__ import annotations

import csv
import io
import netrc
import os
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from dit.checkpoints.metrics_csv import metric_rows, newest
from dit.files import read_text, write_atomic

if TYPE_CHECKING:  # the import takes seconds
    import wandb


class MetricsCsv(Logger):
    """Writes metrics.csv: a row for each logged step, a column for each metric, empty if a step has no value.

    Resuming at step s drops the rows that an interrupted run wrote after s, so that the file describes one run.
    """

    def __init__(self, folder: Path, every: int = 20) -> None:
        super().__init__()
        self.path, self.every = folder / "metrics.csv", every
        self.rows: dict[int, dict[str, float]] = {}
        self.unwritten = 0

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Does nothing: config.yaml holds the config."""

    def last(self) -> dict[str, float]:
        """Returns the newest value of every metric, by name."""
        return dict(sorted(newest(self.rows).items()))

    def resume_at(self, step: int) -> None:
        """Reads the rows up to `step` from an existing file."""
        self.rows = {done: row for done, row in metric_rows(self.path).items() if done <= step}

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Adds values to a row. Lightning counts from 0; `step` in the file is the number of optimizer steps done."""
        done = (step or 0) + 1
        row = self.rows.setdefault(done, {})
        row |= {k: float(v) for k, v in metrics.items() if k != "epoch"}
        self.unwritten += 1
        if self.unwritten >= self.every or any(
            name.startswith(("val/", "score/")) for name in metrics
        ):  # costly values
            self.write()

    @rank_zero_only
    def write(self) -> None:
        """Writes the whole file. Lightning's `save` is not used: it is called after every row, so its cost would grow
        with the square of the steps."""
        columns = sorted({name for row in self.rows.values() for name in row})
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["step", *columns])
        for step in sorted(self.rows):
            row = self.rows[step]
            writer.writerow([step, *(repr(row[name]) if name in row else "" for name in columns)])
        write_atomic(self.path, text.getvalue())
        self.unwritten = 0

    def after_save_checkpoint(self, checkpoint_callback: object) -> None:
        """Writes all rows up to the checkpoint. The row of its own step is logged later and then written at once."""
        self.write()
        self.unwritten = self.every

    def finalize(self, status: str) -> None:
        if self.rows:
            self.write()


def wandb_has_key() -> bool:
    """Returns True if there is a W&B key in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


MODES: tuple[Literal["online", "offline", "disabled"], ...] = ("online", "offline", "disabled")


def wandb_mode(mode: str) -> Literal["online", "offline", "disabled"]:
    """Returns the mode to use. `auto` is WANDB_MODE of the environment if that is set, else online if there is a key,
    else offline.

    Raises ValueError for an unknown mode, for online without a key, and for online if WANDB_MODE says otherwise.
    """
    if mode not in ("auto", *MODES):
        raise ValueError(f"wandb.mode={mode!r} is not one of auto, {', '.join(MODES)}")
    outside = os.environ.get("WANDB_MODE") or None
    if outside not in (None, *MODES):
        raise ValueError(f"WANDB_MODE={outside} in the environment is not one of {', '.join(MODES)}")
    if mode == "online" and outside not in (None, "online"):
        raise ValueError(f"wandb.mode=online, but WANDB_MODE={outside} in the environment: unset one of them")
    os.environ.setdefault("WANDB_SILENT", "true")
    chosen = (outside or ("online" if wandb_has_key() else "offline")) if mode == "auto" else mode
    if chosen == "online" and not wandb_has_key():
        raise ValueError("W&B online needs a key: set WANDB_API_KEY, run `wandb login`, or say wandb.mode=offline")
    return next(literal for literal in MODES if literal == chosen)


def wandb_run(
    folder: Path, project: str, mode: str, group: str | None, job: str, config: dict[str, Any]
) -> wandb.Run | None:
    """Returns the W&B run of `folder`, named after it, or None if W&B is disabled. The caller has to finish it.

    Its id is stored in the folder, so that later commands in this folder continue the same W&B run.
    """
    resolved = wandb_mode(mode)
    if resolved == "disabled":
        return None
    import wandb

    path = folder / "wandb_id"
    stored = read_text(path).strip() if path.is_file() else None
    run = wandb.init(
        id=stored,
        resume="allow" if stored else None,
        project=project,
        group=group,
        job_type=job,
        name=folder.name,
        dir=folder,
        mode=resolved,
        config=config,
        allow_val_change=True,
    )
    write_atomic(path, run.id + "\n")
    return run


def wandb_logger(run: wandb.Run) -> WandbLogger:
    """Returns Lightning's logger for a W&B run that is already started. If Lightning started it, W&B would warn of the
    settings that Lightning passes."""
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(experiment=run, save_dir=run.dir, project=run.project)
