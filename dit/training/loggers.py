"""Where numbers go: metrics.csv in the run's directory always, Weights & Biases beside it."""

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

from dit.files import read_text, write_atomic

if TYPE_CHECKING:  # importing it takes seconds
    import wandb


class MetricsCsv(Logger):
    """metrics.csv: a row for each logged step, a column for each metric, empty where a step has no value.

    Resuming at step s drops the rows that an interrupted run wrote after s, so that the file reads as one run.
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
        """The config lies in config.yaml already."""

    def last(self) -> dict[str, float]:
        """The newest value of every metric."""
        newest: dict[str, float] = {}
        for step in sorted(self.rows):
            newest |= self.rows[step]
        return {name: value for name, value in newest.items() if name != "step"}

    def resume_at(self, step: int) -> None:
        if self.path.is_file():
            with open(self.path, newline="") as file:
                old = [{k: float(v) for k, v in row.items() if v != ""} for row in csv.DictReader(file)]
            self.rows = {int(row["step"]): row for row in old if row["step"] <= step}

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Lightning counts from 0; a row's `step` is the number of optimizer steps that are done."""
        done = (step or 0) + 1
        row = self.rows.setdefault(done, {"step": done})
        row |= {k: float(v) for k, v in metrics.items() if k != "epoch"}
        self.unwritten += 1
        if self.unwritten >= self.every or any(name.startswith(("val/", "score/")) for name in metrics):  # dear
            self.write()

    @rank_zero_only
    def write(self) -> None:
        """The whole file. (Lightning calls `save` after every row; that would cost the square of the steps.)"""
        columns = sorted({name for row in self.rows.values() for name in row} - {"step"})
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["step", *columns])
        for step in sorted(self.rows):
            row = self.rows[step]
            writer.writerow([step, *(repr(row[name]) if name in row else "" for name in columns)])
        write_atomic(self.path, text.getvalue())
        self.unwritten = 0

    def after_save_checkpoint(self, checkpoint_callback: object) -> None:
        """What a checkpoint has seen is on disk with it; its own step is logged just after, and written at once."""
        self.write()
        self.unwritten = self.every

    def finalize(self, status: str) -> None:
        if self.rows:
            self.write()


def wandb_has_key() -> bool:
    """True where a W&B key is at hand: in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


MODES: tuple[Literal["online", "offline", "disabled"], ...] = ("online", "offline", "disabled")


def wandb_mode(mode: str) -> Literal["online", "offline", "disabled"]:
    """What a config's mode comes to. `auto` is WANDB_MODE of the environment where that is set, else online where a key
    is at hand and offline elsewhere.

    Raises ValueError for another mode, for online without a key, and for online where the environment forbids it.
    """
    if mode not in ("auto", *MODES):
        raise ValueError(f"wandb.mode={mode!r} is not one of auto, {', '.join(MODES)}")
    outside = os.environ.get("WANDB_MODE") or None
    if outside not in (None, *MODES):
        raise ValueError(f"WANDB_MODE={outside} in the environment is not one of {', '.join(MODES)}")
    if mode == "online" and outside not in (None, "online"):
        raise ValueError(f"wandb.mode=online, but WANDB_MODE={outside} in the environment: unset one of them")
    os.environ.setdefault("WANDB_SILENT", "true")
    wanted = (outside or ("online" if wandb_has_key() else "offline")) if mode == "auto" else mode
    if wanted == "online" and not wandb_has_key():
        raise ValueError("W&B online needs a key: set WANDB_API_KEY, run `wandb login`, or say wandb.mode=offline")
    return next(known for known in MODES if known == wanted)


def wandb_run(
    folder: Path, project: str, mode: str, group: str | None, job: str, config: dict[str, Any]
) -> wandb.Run | None:
    """The run of W&B that belongs to `folder` and bears its name, or None when W&B is disabled. Finish it.

    Its id stays in the folder, so that what is done there later goes on with the same run.
    """
    resolved = wandb_mode(mode)
    if resolved == "disabled":
        return None
    import wandb

    path = folder / "wandb_id"
    known = read_text(path).strip() if path.is_file() else None
    run = wandb.init(
        id=known,
        resume="allow" if known else None,
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
    """Lightning's logger over a run that is begun already; beginning one itself, Lightning passes settings that W&B
    warns of."""
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(experiment=run, save_dir=run.dir, project=run.project)
