"""Samples pictures at intervals during training: the same prompts and seeds, with the averaged weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import WandbLogger
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dit.data.captions import all_captions
from dit.data.module import PictureData
from dit.data.order import subset
from dit.data.prepared import Prepared
from dit.picture_files import save_png, size_text
from dit.pipeline import Pipeline, Recipe
from dit.plain_values import sizes
from dit.sample_grid import captioned_grid
from dit.scoring.unseen_words import marked, training_words, unseen_words
from dit.training.diffusion import DiffusionModule
from dit.training.ema import weights_for_sampling
from dit.types import CaptionedImages, Condition, to_pixels

COUNT = 12  # pictures, if the config gives no prompts


class Previews(L.Callback):
    """Writes RUN/samples/step_0001000.png every `every` steps and at the end, and logs it. size: of the pictures in
    pixels, the side of a square, (width, height), or a list of such pairs; None for that of training. Of several sizes,
    each has a file, step_0001000_768x512.png.

    If prompts is None, uses training captions and as many held-out ones, chosen at random, the same in every run,
    and shows each sample beside the real picture of its caption. Words that no training caption contains are
    between asterisks. For a model without captions, shows the same number of unconditional pictures. Does not use
    training's random numbers, so previews do not change the run. Raises ValueError for an empty list.
    """

    def __init__(
        self,
        prompts: Sequence[str] | None,
        recipe: Recipe,
        every: int,
        columns: int = 6,
        seed: int = 0,
        size: int | Sequence[int] | Sequence[Sequence[int]] | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"previews: every={every} must be at least 1 step")
        if isinstance(prompts, str) or (prompts is not None and not prompts):
            raise ValueError(
                f"data.prompts={prompts!r}: give a list of at least one, such as data.prompts='[a red star]', or null "
                f"for held-out captions"
            )
        self.prompts = [str(prompt) for prompt in prompts or []]
        self.recipe, self.every, self.columns, self.seed, self.drawn = recipe, every, columns, seed, 0
        self.sizes = [None] if size is None else sizes(size, "callbacks.previews.size")
        self.condition: Condition | None = None
        self.texts = list(self.prompts)  # below the samples
        self.real: list[tuple[str, Tensor]] = []  # beside the samples: what they are, and (3, H, W) uint8

    def read(self, pipeline: Pipeline, data: PictureData) -> None:
        """Encodes the prompts, once for all previews: a text encoder may be slow, and is on the CPU during training.
        Raises ValueError for a prompt that it cannot encode, and for a size that the autoencoder does not have."""
        for size in self.sizes:
            pipeline.shape_of(size)
        if not self.prompts:
            self.choose(data)
        self.condition = pipeline.encode(self.prompts)

    def choose(self, data: PictureData) -> None:
        """Chooses captions of both splits, with a picture each if both splits have pictures."""
        if not any(data.val.captions):
            self.prompts = self.texts = [""] * COUNT
            return
        known = training_words(all_captions(data.train))
        with_pictures = not any(isinstance(split, Prepared) for split in (data.train, data.val))  # which has none
        for name, split in (("training picture", data.train), ("held-out picture", data.val)):
            first: dict[str, int] = {}  # the row of each caption
            for row, caption in enumerate(split.captions):
                first.setdefault(caption, row)
            distinct = list(first)
            for caption in (distinct[place] for place in subset(len(distinct), COUNT // 2)):
                unseen = unseen_words([caption], known)
                self.prompts.append(caption)
                self.texts.append(f"{marked(caption, known)} (*not in training*)" if unseen else caption)
                if with_pictures:
                    self.real.append((name, picture_of(split, first[caption])))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.drawn = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step - self.drawn >= self.every:
            self.draw(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the last preview, also if the run was killed after its last step and is resumed."""
        missing = not all(self.file(trainer, suffix).exists() for suffix in self.suffixes)
        if trainer.strategy.broadcast(missing):
            self.draw(trainer, pl_module)

    @property
    def suffixes(self) -> list[str]:
        """What the names of files and logged pictures end with, for each size."""
        return [f"_{size_text(size)}" if size is not None and len(self.sizes) > 1 else "" for size in self.sizes]

    def file(self, trainer: L.Trainer, suffix: str = "") -> Path:
        return Path(trainer.default_root_dir) / "samples" / f"step_{trainer.global_step:07d}{suffix}.png"

    def grid(self, images: Tensor) -> Image.Image:
        """Returns the sheet of samples (N, 3, H, W) uint8, each right of its real picture if there are any."""
        if not self.real:
            return captioned_grid(images, self.texts, self.columns)
        sides = tuple(images.shape[-2:])
        real = torch.stack([resized_to(picture, sides) for _, picture in self.real])
        pairs = torch.stack([real, images.cpu()], dim=1).flatten(0, 1)
        texts = [text for (name, _), own in zip(self.real, self.texts, strict=True) for text in (name, own)]
        return captioned_grid(pairs, texts, self.columns)

    def draw(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Samples, writes and logs the pictures, on rank 0. The others take part in gathering the weights."""
        assert isinstance(pl_module, DiffusionModule)
        self.drawn, pipeline = trainer.global_step, pl_module.pipeline
        with weights_for_sampling(trainer, pl_module):
            if not trainer.is_global_zero:
                return
            assert self.condition is not None, "read the prompts before training"
            seeds = range(self.seed, self.seed + len(self.prompts))
            samples = [
                to_pixels(pipeline(self.condition, seeds, self.recipe, shape=pipeline.shape_of(size)).images)
                for size in self.sizes
            ]
        for suffix, images in zip(self.suffixes, samples, strict=True):
            grid = self.grid(images)
            save_png(grid, self.file(trainer, suffix))
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_image(f"samples{suffix}", [grid], step=self.drawn)


def picture_of(split: CaptionedImages, row: int) -> Tensor:
    """Returns a picture of a split, (3, H, W) uint8."""
    return torch.from_numpy(split.images(np.array([row])))[0]


def resized_to(picture: Tensor, sides: Sequence[int]) -> Tensor:
    """Returns (3, H, W) uint8 at the height and width of a sample, unchanged if it has them."""
    if picture.shape[-2:] == tuple(sides):
        return picture
    resized = F.interpolate(picture[None].float(), tuple(sides), mode="bilinear", antialias=True)
    return resized[0].round().clamp(0, 255).to(torch.uint8)
