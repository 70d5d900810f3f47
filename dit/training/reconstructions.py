"""Reconstructions of held-out pictures while an autoencoder is trained, to look at, and a verdict at the end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from dit.data.module import PictureData
from dit.data.order import subset
from dit.encoders.reconstruction import Quality, errors_of
from dit.picture_files import save_png
from dit.sample_grid import captioned_grid
from dit.training.autoencoder import AutoencoderModule

SHOWN, BATCH = 12, 64


class Reconstructions(L.Callback):
    """Writes RUN/samples/step_0001000.png every `every` steps and at the end: held-out pictures, chosen at random,
    above their reconstructions. At the end, prints a verdict on `count` held-out pictures and adds their PSNR to the
    summary."""

    def __init__(self, every: int, count: int = 512, columns: int = 6) -> None:
        if min(every, columns) < 1 or count < 2:
            raise ValueError(
                f"reconstructions: every={every} and columns={columns} must be at least 1, and count={count} at least 2"
            )
        self.every, self.count, self.columns = every, count, columns
        self.quality: Quality | None = None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step % self.every == 0 and not self.file(trainer).exists():
            self.draw(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        if not self.file(trainer).exists():
            self.draw(trainer, pl_module)
        val = self.pictures(trainer)
        rows = np.sort(subset(len(val), self.count))
        errors = []
        for part in np.array_split(rows, -(-len(rows) // BATCH)):
            images = torch.from_numpy(val.images(part))
            errors.append(errors_of(images, self.reconstructed(pl_module, images)))
        self.quality = Quality.of(*(torch.cat(column) for column in zip(*errors, strict=True)))
        print(f"autoencoder: {self.quality.verdict()}", file=sys.stderr)

    def headlines(self) -> dict[str, bool]:
        """Returns the main number of the summary, and that higher is better."""
        return {"psnr": True}

    def summary(self) -> dict[str, float]:
        if self.quality is None or self.quality.psnr is None or self.quality.halved is None:
            return {}
        return {"psnr": self.quality.psnr, "psnr_halved": self.quality.halved}

    @staticmethod
    def pictures(trainer: L.Trainer) -> Any:
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, PictureData)
        return data.val

    @staticmethod
    def file(trainer: L.Trainer) -> Path:
        return Path(trainer.default_root_dir) / "samples" / f"step_{trainer.global_step:07d}.png"

    @staticmethod
    def reconstructed(module: L.LightningModule, images: Tensor) -> Tensor:
        """Returns the reconstructions (N, 3, H, W) uint8 on the CPU."""
        assert isinstance(module, AutoencoderModule)
        return module.reconstruct(images)

    def draw(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes and logs the grid, on rank 0: rows of originals, each above the row of its reconstructions."""
        if not trainer.is_global_zero:
            return
        val = self.pictures(trainer)
        images = torch.from_numpy(val.images(np.array(subset(len(val), SHOWN))))
        made = self.reconstructed(pl_module, images)
        rows = [row for pair in zip(images.split(self.columns), made.split(self.columns), strict=True) for row in pair]
        columns = min(self.columns, len(images))
        blank = columns - len(rows[-1])  # the last rows may be shorter
        if blank:
            rows[-2:] = [torch.cat([row, row.new_full((blank, *row.shape[1:]), 255)]) for row in rows[-2:]]
        names = ["original", "reconstruction"] * (len(rows) // 2)
        grid = captioned_grid(torch.cat(rows), names, columns, header=[""] * columns)
        save_png(grid, self.file(trainer))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("reconstructions", [grid], step=trainer.global_step)
