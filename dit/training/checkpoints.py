"""Writes checkpoints during training, and finds the one to resume from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from dit import __version__
from dit.checkpoints.native import CONFIG, checkpoints_of, find_checkpoint, newest_checkpoint, read_checkpoint
from dit.errors import first_line
from dit.files import replacing
from dit.training.guard import StabilityGuard
from dit.training.loggers import MetricsCsv
from dit.training.sharded_writer import remove
from dit.versions import VERSION


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file and renames it: a full disk or a kill leaves the previous checkpoint intact."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        try:
            with replacing(path) as growing:
                torch.save(checkpoint, growing)
                if Path(path).is_dir():  # a sharded checkpoint of this step, which could not be read
                    remove(Path(path))
        except RuntimeError as error:  # how torch's zip writer reports a failed write
            raise ValueError(f"cannot write {path}: {first_line(error)}") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Returns the content of a checkpoint, also of one that was sharded."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        remove(Path(path))


class Checkpoints(ModelCheckpoint):
    """Writes RUN/checkpoints/step_0000400.ckpt every `every` steps, at the end and when the run is interrupted, and
    keeps the newest `keep`. Writes none if a loss or a weight is not finite.

    The first step is saved too, so that a full disk is found at once and an early interruption can be resumed.
    """

    def __init__(self, every: int, keep: int = 2) -> None:
        if every < 1 or keep < 1:
            raise ValueError(f"checkpoints: every={every} and keep={keep} must be at least 1")
        self.every = every
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

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._last_global_step_saved = trainer.global_step  # else the next step would save it again

    def on_train_batch_end(self, *_: Any) -> None:
        """Nothing: the losses of this step are logged later, and a run killed in between would never have them."""

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Saves the step before, if it is due: its losses are logged and its validation has ended."""
        step = trainer.global_step
        if step == 1 or (step > 0 and step % self.every == 0):
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves the last step even if `every` does not divide it."""
        self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        """Writes a checkpoint unless this step has one."""
        if self._last_global_step_saved != trainer.global_step:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_topk_checkpoint(self, trainer: L.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        """Writes a checkpoint if its loss and weights are finite. Lightning calls this for every checkpoint. Without a
        `StabilityGuard`, one that warns is used."""
        found = [c for c in trainer.callbacks if isinstance(c, StabilityGuard)]  # type: ignore[attr-defined]
        guard = found[0] if found else StabilityGuard("warn")
        if guard.passes(trainer, trainer.lightning_module):
            for logger in trainer.loggers:
                if isinstance(logger, MetricsCsv):
                    logger.write()  # a resumed run continues with the rows up to its checkpoint
            super()._save_topk_checkpoint(trainer, monitor_candidates)


class Stamp(L.Callback):
    """Writes the resolved config and the version of dit into every checkpoint: a .ckpt file is enough to sample.

    Lightning counts batches, `trainer.accumulate_grad_batches` per step. On resuming, the count is set from the steps
    done, so that training starts with a whole step after a change of the accumulation or in the middle of a step.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint |= {CONFIG: self.config, VERSION: __version__}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        batches = checkpoint["global_step"] * trainer.accumulate_grad_batches
        for counts in (progress["total"], progress["current"]):
            open_ones = counts["started"] - counts["completed"]  # 1 where it was saved within a batch, as by 0.1.0
            counts |= {"ready": batches, "started": batches, "processed": batches, "completed": batches - open_ones}
        # Lightning counts the step again, for its loggers, if a validation was due: it expects to have saved before.
        validated = batches % int(trainer.val_check_interval) == 0 and bool(trainer.limit_val_batches)
        if not open_ones:
            checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"] = (
                checkpoint["global_step"] - validated
            )


def newest_run(folders: Iterable[Path], fits: Callable[[Path], bool]) -> Path | None:
    """Returns the run directory with the newest checkpoint among those for which `fits` is true, or None."""
    written = {run: files[0].stat().st_mtime for run in folders if (files := checkpoints_of(run)) and fits(run)}
    return max(written, key=lambda run: written[run], default=None)


def checkpoint_to_resume(resume: str, run: Path) -> Path | None:
    """Returns the checkpoint to resume from. `auto`: the newest readable one of the run, or None if it has none. Else
    `resume` is a run directory or a file.

    Raises ValueError if none of the run's checkpoints can be read, or if a file of this run is given and the run has
    newer ones, which would later be taken for the newest of the resumed run."""
    files = checkpoints_of(run)
    if resume == "auto" or Path(resume).absolute() == run:
        newest = newest_checkpoint(run, whole=False)
        if files and newest is None:
            raise ValueError(
                f"{run}: none of its {len(files)} checkpoints can be read; delete {run / 'checkpoints'} to train it "
                f"from step 0, or choose another run_dir"
            )
        return newest[0] if newest else None
    path = find_checkpoint(resume, whole=False)[0]
    if path in files[1:] and (newest := newest_checkpoint(run, whole=False)) and newest[0] != path:
        raise ValueError(
            f"resume={resume}: the run has newer checkpoints, up to {newest[0].name}; give run_dir=DIR to continue "
            f"from this one in another directory"
        )
    return path
