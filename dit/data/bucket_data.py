"""Training data in aspect-ratio buckets: every picture in the bucket nearest to it, batches of one bucket."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from dit.data.buckets import BucketBatches, aspect_ratio_bins, batch_sizes, nearest_bin
from dit.data.latent_dataset import LatentDataset
from dit.data.module import LatentData
from dit.data.order import Visit, subset
from dit.data.prepared import Prepared
from dit.data.shards import Augmentation, Shards, Store
from dit.data.source import Images
from dit.types import Batch, CaptionedImages, size_conditions


class SizedLatents(Dataset[Batch]):
    """Latents with size conditions: batches of visits -> Batch.

    sizes: for each sample original height and width, top and left of the crop, height and width, (N, 6) float32.
    """

    def __init__(self, latents: LatentDataset, sizes: torch.Tensor) -> None:
        self.latents, self.sizes = latents, sizes

    def __getitem__(self, visits: list[Visit]) -> Batch:
        batch = self.latents[visits]
        batch.condition = replace(batch.condition, extra=size_conditions(self.sizes[batch.index]))
        return batch


def buckets_of(
    images: Images, size: int, side_multiple: int, among: Iterable[int] | None = None
) -> dict[tuple[int, int], Images]:
    """Returns the images, or the rows `among` them, in diffusers' buckets of about size x size pixels that have any, by
    height and width."""
    bins = aspect_ratio_bins(size, side_multiple)
    rows: list[list[int]] = [[] for _ in bins]
    for row in range(len(images)) if among is None else among:
        picture = images.rows[row].picture
        assert picture is not None  # rows without one are left out
        width, height = picture.size
        rows[nearest_bin(bins, height, width)].append(row)
    return {
        side: Images(images.layout, [images.rows[row] for row in those], side[::-1], images.rules)
        for side, those in zip(bins, rows, strict=True)
        if those
    }


class BucketData(LatentData):
    """`LatentData` whose training pictures keep their aspect ratio: each is cropped to the nearest of diffusers' sizes
    with about size x size pixels, and a batch has pictures of one size. Held-out pictures are size x size.

    side_multiple: pixels, of which a bucket's sides are multiples: the autoencoder's factor times the patch. batch_size
    is that of size x size; other buckets have about as many pixels in a batch, a multiple of batch_multiple, which the
    number of ranks must divide. size_conditions: give the network the original size, the crop and the size of each
    picture (SDXL, arXiv:2307.01952, section 2.2), as entries of `Condition.extra` for adapter=size_conditions.

    train: picture files, or what `dit-prepare` has made of them with data=buckets. Raises ValueError for other data.
    """

    takes_buckets = True

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
        self.size_conditions = size_conditions
        self.buckets: list[Images] = []  # of picture files
        if isinstance(train, Prepared):
            if not train.is_bucketed:
                raise ValueError(f"{train.store.folder} has no buckets: train with data=prepared")
            if train_limit is not None:
                raise ValueError(f"data.module.train_limit={train_limit}: prepared buckets have no limit; leave it out")
            self.counts, bins = train.store.counts, [(height, width) for height, width in train.store.sizes]
        elif isinstance(train, Images) and isinstance(val, Images):
            chosen = np.sort(subset(len(train), train_limit)).tolist()
            found = buckets_of(train, size, side_multiple, chosen)
            self.buckets, bins = list(found.values()), list(found)
            self.counts = list(map(len, self.buckets))
        else:
            raise ValueError(f"buckets need pictures with sizes of their own, and {type(train).__name__} has one size")
        self.sizes = batch_sizes(bins, batch_size, size, batch_multiple)

    def _cached(self) -> list[CaptionedImages]:
        return [*self.buckets, self.val] if self.buckets else [self.train, self.val]

    def _augmentation(self, split: CaptionedImages) -> Augmentation:
        return super()._augmentation(self.train if split is not self.val else split)

    def _store(self, split: CaptionedImages) -> Shards:
        if split is self.train and self.buckets:
            return Shards.joined("", [Store(self._folder(bucket)) for bucket in self.buckets])
        return super()._store(split)

    def _latents(self, split: CaptionedImages) -> Dataset[Batch]:
        length, choose = self.text_encoder.length, split is not self.val
        latents = LatentDataset(self._store(split), length, self.seed, self._augmentation(split), choose)
        if not self.size_conditions:
            return latents
        parts = self.buckets if split is self.train and self.buckets else [split]
        return SizedLatents(latents, torch.cat([sizes_of(part) for part in parts]))

    def orders(
        self, step: int = 0, rank: int = 0, world: int = 1, parts: int = 1
    ) -> list[tuple[Sequence[CaptionedImages], Any]]:
        """Returns the buckets and the batches of the one loader. A step has one bucket, the same on all ranks, whatever
        `parts`."""
        batches = BucketBatches(self.counts, self.sizes, self.seed, step, rank, world, parts)
        return [(self.buckets or [self.train], batches)]


def sizes_of(images: CaptionedImages) -> torch.Tensor:
    """Returns original height and width, top and left of the crop in original pixels, height and width, (N, 6) float32,
    of prepared pictures, or of images that have one size."""
    if isinstance(images, Prepared):
        return sizes_of_store(images.store)
    assert isinstance(images, Images)
    assert images.size is not None
    width, height = (images.size, images.size) if isinstance(images.size, int) else images.size
    found = []
    for row in images.rows:
        assert row.picture is not None
        left, top, *_ = images.rules.box(row.picture.size, (width, height))
        found.append([*row.picture.size[::-1], top, left, height, width])
    return torch.tensor(found, dtype=torch.float32).reshape(-1, 6)


def sizes_of_store(store: Shards) -> torch.Tensor:
    """Returns the same of a store, whose sidecars record the sizes and the crops. Raises ValueError if they do not."""
    found = []
    for place in range(len(store.shards)):
        table = store.table(place, ["width", "height", "crop"])
        if table.num_columns < 3:
            raise ValueError(
                f"{store.folder} does not record the sizes of its pictures: set data.size_conditions=false, or "
                f"prepare picture files"
            )
        for row in table.to_pylist():
            left, top, *_ = map(int, row["crop"].split(","))
            found.append([row["height"], row["width"], top, left])
    sizes = np.repeat(store.sizes, store.counts, axis=0)
    return torch.cat([torch.tensor(found, dtype=torch.float32), torch.from_numpy(sizes).float()], dim=1)
