"""Training data in aspect-ratio buckets: every picture in the bucket nearest to it, batches of one bucket."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from dit.data.buckets import BucketBatches, aspect_ratio_bins, batch_sizes, nearest_bin
from dit.data.cache import build_cache
from dit.data.draws import DrawnBatches
from dit.data.module import LatentData
from dit.data.order import Visit, subset
from dit.data.shards import LatentDataset, Store
from dit.data.source import Images
from dit.types import Batch, CaptionedImages, size_conditions


class SizedLatents(Dataset[Batch]):
    """Latents of several shapes: batches of visits to one bucket -> Batch, with the size conditions if there are any.

    sizes: for each sample original height and width, top and left of the crop, height and width, (N, 6) float32.
    """

    def __init__(self, parts: list[LatentDataset], sizes: torch.Tensor | None) -> None:
        self.parts, self.sizes = parts, sizes

    def __getitem__(self, visits: list[Visit]) -> Batch:
        part = next(part for part in reversed(self.parts) if part.first <= visits[0].sample)
        batch = part[visits]
        if self.sizes is not None:
            batch.condition = replace(batch.condition, extra=size_conditions(self.sizes[batch.index]))
        return batch


class BucketData(LatentData):
    """`LatentData` whose training pictures keep their aspect ratio: each is cropped to the nearest of diffusers' sizes
    with about size x size pixels, and a batch has pictures of one size. Held-out pictures are size x size.

    side_multiple: pixels, of which a bucket's sides are multiples: the autoencoder's factor times the patch. batch_size
    is that of size x size; other buckets have about as many pixels in a batch, a multiple of batch_multiple, which the
    number of ranks must divide. size_conditions: give the network the original size, the crop and the size of each
    picture (SDXL, arXiv:2307.01952, section 2.2), as entries of `Condition.extra` for adapter=size_conditions.

    Raises ValueError if `train` has no picture files.
    """

    def __init__(
        self,
        train: CaptionedImages,
        val: CaptionedImages,
        batch_size: int,
        seed: int,
        size: int,
        side_multiple: int = 16,
        batch_multiple: int = 8,
        size_conditions: bool = False,
        workers: int = 0,
        val_limit: int = 1024,
        train_limit: int | None = None,
    ) -> None:
        super().__init__(train, val, batch_size, seed, workers, val_limit=val_limit, train_limit=train_limit)
        if not isinstance(train, Images) or not isinstance(val, Images):
            raise ValueError(f"buckets need pictures with sizes of their own, and {type(train).__name__} has one size")
        self.size_conditions = size_conditions
        bins = aspect_ratio_bins(size, side_multiple)
        sizes = batch_sizes(bins, batch_size, size, batch_multiple)
        rows: list[list[int]] = [[] for _ in bins]
        for row in np.sort(subset(len(train), train_limit)).tolist():
            width, height = train.rows[row].picture.size  # rows without one are left out
            rows[nearest_bin(bins, height, width)].append(row)
        filled = [place for place, among in enumerate(rows) if among]
        self.sizes = [sizes[place] for place in filled]
        self.buckets = [
            Images(train.layout, [train.rows[row] for row in rows[place]], bins[place][::-1], train.rules)
            for place in filled
        ]

    def prepare_data(self) -> None:
        assert self.trainer is not None
        device = self.trainer.strategy.root_device
        self.autoencoder.to(device)
        for split in (*self.buckets, self.val):
            augmentation = self._augmentation(split)
            build_cache(self._folder(split), split, self.autoencoder, self.text_encoder, augmentation, device)

    def _augmentation(self, split: CaptionedImages) -> Any:
        return super()._augmentation(self.train if split is not self.val else split)

    def _latents(self, split: Images, first: int, choose: bool) -> LatentDataset:
        store, augmentation = Store(self._folder(split)), self._augmentation(split)
        return LatentDataset(store, self.text_encoder.length, self.seed, augmentation, choose, first)

    def _drawn(self, splits: list[Images], training: bool) -> Dataset[Any]:
        firsts = np.cumsum([0, *map(len, splits)]).tolist()
        parts = [self._latents(split, first, training) for split, first in zip(splits, firsts, strict=False)]
        sizes = torch.cat([sizes_of(split) for split in splits]) if self.size_conditions else None
        batches = SizedLatents(parts, sizes)
        if self.draws is None:
            return batches
        return DrawnBatches(batches, self.draws if training else self.draws.validation)

    def read(self, split: CaptionedImages) -> Dataset[Any]:
        assert isinstance(split, Images)
        return self._drawn([split], training=False) if split is self.val else self._drawn(self.buckets, training=True)

    def orders(
        self, step: int = 0, rank: int = 0, world: int = 1, parts: int = 1
    ) -> list[tuple[Sequence[CaptionedImages], Any]]:
        """Returns the buckets and the batches of the one loader; a batch has one bucket, the same on all ranks. With
        accumulated gradients the batches of a step may have different buckets."""
        wrong = [size for size in self.sizes if size % parts]
        if wrong:
            raise ValueError(
                f"a bucket's batch of {wrong[0]} pictures is not a multiple of accumulate_grad_batches={parts}; set "
                f"data.module.batch_multiple to a multiple of it"
            )
        counts, sizes = list(map(len, self.buckets)), [size // parts for size in self.sizes]
        return [(self.buckets, BucketBatches(counts, sizes, self.seed, step * parts, rank, world))]


def sizes_of(images: Images) -> torch.Tensor:
    """Returns original height and width, top and left of the crop in original pixels, height and width, (N, 6) float32,
    of images that have one size."""
    assert images.size is not None
    width, height = (images.size, images.size) if isinstance(images.size, int) else images.size
    found = []
    for row in images.rows:
        assert row.picture is not None
        left, top, *_ = images.rules.box(row.picture.size, (width, height))
        found.append([*row.picture.size[::-1], top, left, height, width])
    return torch.tensor(found, dtype=torch.float32).reshape(-1, 6)
