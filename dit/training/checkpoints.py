"""Writing checkpoints while training, and choosing the one to go on from."""

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
from dit.checkpoints.native import CONFIG, checkpoints_of, find_checkpoint, newest_checkpoint
from dit.errors import first_line
from dit.files import replacing
from dit.training.finite import FiniteLoss
from dit.training.interruption import Interruption
from dit.versions import VERSION


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames: a full disk or a kill leaves the checkpoint before as it was."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        try:
            with replacing(path) as growing:
                torch.save(checkpoint, growing)
        except RuntimeError as error:  # how torch's zip writer reports a failed write
            raise ValueError(f"cannot write {path}: {first_line(error)}") from error


class Checkpoints(ModelCheckpoint):
    """RUN/checkpoints/step_0000400.ckpt every `every` steps, at the end, and where the run is interrupted; the newest
    `keep` stay. One whose loss or weights are not finite is not written.

    The first step is saved too: a disk that is full shows at once, and there is something to go on from.
    """

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

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._last_global_step_saved = trainer.global_step  # it would be saved again within the next step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *batch: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *batch)
        ends = any(isinstance(c, Interruption) and c.due for c in trainer.callbacks)  # type: ignore[attr-defined]
        if ends or trainer.global_step == 1:
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The last step is saved even where `every` does not divide it."""
        self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        """Unless this step is saved already."""
        if self._last_global_step_saved != trainer.global_step:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_topk_checkpoint(self, trainer: L.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        """Every checkpoint goes through here. Where training has no guard against numbers that are not finite, one that
        warns stands in."""
        found = [c for c in trainer.callbacks if isinstance(c, FiniteLoss)]  # type: ignore[attr-defined]
        guard = found[0] if found else FiniteLoss("warn")
        if guard.passes(trainer, trainer.lightning_module):
            super()._save_topk_checkpoint(trainer, monitor_candidates)


class Stamp(L.Callback):
    """Puts the resolved config and the version of dit into every checkpoint, so that a .ckpt file alone can be sampled
    from.

    Lightning counts batches, of which a step has `trainer.accumulate_grad_batches`: on resuming, the count is set to
    that of the steps done, so that another accumulation or an odd batch starts with a whole step.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint |= {CONFIG: self.config, VERSION: __version__}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        batches = checkpoint["global_step"] * trainer.accumulate_grad_batches
        for counts in (progress["total"], progress["current"]):
            open_ones = counts["ready"] - counts["completed"]  # 1 where it was saved within the end of a batch
            counts |= {"ready": batches, "started": batches, "processed": batches, "completed": batches - open_ones}


def newest_run(folders: Iterable[Path], fits: Callable[[Path], bool]) -> Path | None:
    """The one with the youngest checkpoint, of those run directories that have any and fit."""
    written = {run: files[0].stat().st_mtime for run in folders if (files := checkpoints_of(run)) and fits(run)}
    return max(written, key=lambda run: written[run], default=None)


def checkpoint_to_resume(resume: str, run: Path) -> Path | None:
    """`auto`: the newest readable checkpoint of the run, None where there is none yet. Else a run directory or file.

    Raises ValueError where none of the run's checkpoints can be read, and for a file of the run that has younger ones,
    for these would be taken for the run's newest."""
    files = checkpoints_of(run)
    if resume == "auto" or Path(resume).absolute() == run:
        newest = newest_checkpoint(run)
        if files and newest is None:
            raise ValueError(
                f"{run}: none of its {len(files)} checkpoints can be read; delete {run / 'checkpoints'} to train it "
                f"from step 0, or choose another run_dir"
            )
        return newest[0] if newest else None
    path = find_checkpoint(resume)[0]
    if path in files[1:] and (newest := newest_checkpoint(run)) and newest[0] != path:
        raise ValueError(
            f"resume={resume}: the run has younger checkpoints, up to {newest[0].name}; give run_dir=DIR to go on from "
            f"this one in another directory"
        )
    return path
