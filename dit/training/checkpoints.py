"""Writing checkpoints while training, and choosing the one to go on from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from dit.checkpoints.native import CONFIG, checkpoints_of, find_checkpoint, newest_checkpoint
from dit.errors import first_line
from dit.files import replacing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames: a full disk or a kill leaves the checkpoint before as it was."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        try:
            with replacing(path) as growing:
                torch.save(checkpoint, growing)
        except RuntimeError as error:  # how torch's zip writer reports a failed write
            raise ValueError(f"cannot write {path}: {first_line(error)}") from error


class Checkpoints(ModelCheckpoint):
    """RUN/checkpoints/step_0000400.ckpt every `every` steps and at the end; the newest `keep` stay."""

    def __init__(self, every: int, keep: int = 2) -> None:
        if every < 1 or keep < 1:
            raise ValueError(f"checkpoints: every={every} and keep={keep} must be at least 1")
        super().__init__(
            filename="step_{step:07.0f}",
            auto_insert_metric_name=False,
            every_n_train_steps=every,
            save_top_k=keep,
            monitor="step",
            mode="max",
            enable_version_counter=False,
        )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.dirpath = str(Path(trainer.default_root_dir) / "checkpoints")
        super().setup(trainer, pl_module, stage)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The last step is saved even where `every` does not divide it."""
        if self._last_global_step_saved != trainer.global_step:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))


class Stamp(L.Callback):
    """Puts the resolved config into every checkpoint, so that a .ckpt file alone can be sampled from."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[CONFIG] = self.config


def newest_run(folders: Iterable[Path], fits: Callable[[Path], bool]) -> Path | None:
    """The one with the youngest checkpoint, of those run directories that have any and fit."""
    written = {run: files[0].stat().st_mtime for run in folders if (files := checkpoints_of(run)) and fits(run)}
    return max(written, key=lambda run: written[run], default=None)


def checkpoint_to_resume(resume: str, run: Path) -> Path | None:
    """`auto`: the newest readable checkpoint of the run, None where there is none yet. Else a run directory or file."""
    if resume == "auto":
        found = newest_checkpoint(run)
        return found[0] if found else None
    return find_checkpoint(resume)[0]
