"""LightningDataModules: the splits of one data set, as pictures or as cached latents, in an order keyed by the seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dit.data.cache import build_cache, cache_folder
from dit.data.captions import chosen_caption
from dit.data.draws import DrawnBatches, TrainingDraws
from dit.data.latent_dataset import LatentDataset
from dit.data.loader import Loader
from dit.data.mixture import Mixture, MixtureBatches
from dit.data.order import KeyedBatches, Visit, subset
from dit.data.prefetch import Prefetched
from dit.data.prepared import Prepared
from dit.data.shards import PLAIN, Augmentation, Shards, Store
from dit.types import Autoencoder, Batch, CaptionedBatch, CaptionedImages, TextEncoder


class Pictures(Dataset[CaptionedBatch]):
    """A source, read in batches: a list of visits -> CaptionedBatch. seed: chooses among several captions of an image
    for each visit; None takes the first."""

    def __init__(self, source: CaptionedImages, seed: int | None = None) -> None:
        self.source, self.seed = source, seed
        self.choices = None if seed is None else getattr(source, "caption_choices", None)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, visits: list[Visit]) -> CaptionedBatch:
        index = [visit.sample for visit in visits]
        images = torch.from_numpy(self.source.images(np.array(index)))
        epoch = torch.tensor([visit.epoch for visit in visits])
        return CaptionedBatch(images, list(map(self.caption, visits)), torch.tensor(index), epoch)

    def caption(self, visit: Visit) -> str:
        """Returns the caption of a visit."""
        if self.choices is None or self.seed is None:
            return self.source.captions[visit.sample]
        choices = self.choices[visit.sample]
        return choices[chosen_caption([weight for _, weight in choices], self.seed, visit.epoch, visit.sample)][0]


def shares_of(split: CaptionedImages) -> tuple[list[int], list[float]] | None:
    """Returns the number of samples and the weight of each source of a mixture, None for other data."""
    if isinstance(split, Mixture):
        return list(map(len, split.parts)), split.weights
    if isinstance(split, Prepared) and split.weights is not None:
        return split.store.counts, split.weights
    return None


class PictureData(L.LightningDataModule):
    """Pictures with captions. `batch_size` is the total over all ranks; `workers` is the number of loading processes;
    with 0, a thread of the training process loads the next batch during a step.

    The training loader never ends, and starts at the trainer's step. `train_limit` and `val_limit` bound the number of
    samples that are used: a random subset, the same for every seed and rank. unseen, subject: what only scores use,
    combinations that do not occur in training and the pictures of one subject.
    """

    def __init__(
        self,
        train: CaptionedImages,
        val: CaptionedImages,
        batch_size: int,
        seed: int,
        workers: int = 0,
        unseen: CaptionedImages | None = None,
        extra: CaptionedImages | None = None,
        subject: CaptionedImages | None = None,
        val_limit: int = 1024,
        train_limit: int | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"data.batch_size={batch_size} must be at least 1")
        if workers < 0:
            raise ValueError(f"data.workers={workers} must not be negative")
        for name, limit in {"val_limit": val_limit, "train_limit": train_limit}.items():
            if limit is not None and limit < 1:
                raise ValueError(f"data.module.{name}={limit} must be at least 1")
        self.train, self.val, self.unseen, self.extra, self.subject = train, val, unseen, extra, subject
        self.batch_size, self.seed, self.workers, self.val_limit = batch_size, seed, workers, val_limit
        self.train_limit = train_limit

    @property
    def description(self) -> dict[str, Any]:
        """The number of samples and the fingerprint of each split by name."""
        splits = {name: getattr(self, name) for name in ("train", "val", "unseen", "extra")}
        found = {name: split for name, split in splits.items() if split is not None}
        return {name: {"samples": len(split), "fingerprint": split.fingerprint} for name, split in found.items()}

    def read(self, split: CaptionedImages) -> Dataset[Any]:
        return Pictures(split, self.seed if split is not self.val else None)

    def _loader(self, split: CaptionedImages, batches: Any) -> DataLoader[Any]:
        return Loader(self.read(split).__getitem__, batches, self.workers)

    def train_dataloader(self) -> Sequence[Iterable[Any]]:
        """Returns a loader of `train` and, if it is set, one of `extra` (e.g. pictures of another size), with
        a batch of each per step."""
        assert self.trainer is not None
        parts, step = self.trainer.accumulate_grad_batches, self.trainer.global_step
        orders = self.orders(step, self.trainer.global_rank, self.trainer.world_size, parts)
        splits = [split for split in (self.train, self.extra) if split is not None]
        loaders = [self._loader(split, order) for split, (_, order) in zip(splits, orders, strict=True)]
        return loaders if self.workers else [Prefetched(loader) for loader in loaders]

    def orders(
        self, step: int = 0, rank: int = 0, world: int = 1, parts: int = 1
    ) -> list[tuple[Sequence[CaptionedImages], Any]]:
        """Returns for each training loader the sources whose samples it numbers, one source after the other, and its
        endless batches from an optimizer step on, `parts` of them a step."""
        if self.batch_size % parts:
            raise ValueError(f"batch_size={self.batch_size} is not a multiple of accumulate_grad_batches={parts}")
        size, start = self.batch_size // parts, step * parts
        splits = [split for split in (self.train, self.extra) if split is not None]
        return [([split], self.order(split, size, start, rank, world)) for split in splits]

    def order(self, split: CaptionedImages, size: int, start: int = 0, rank: int = 0, world: int = 1) -> Any:
        """Returns the endless batches of `size` visits in which training uses a split."""
        if (shares := shares_of(split)) is not None:
            if self.train_limit is not None:
                raise ValueError(
                    f"data.module.train_limit={self.train_limit}: a mixture has no limit; give it smaller sources"
                )
            return MixtureBatches(*shares, size, self.seed, start, rank, world)
        chosen = None if self.train_limit is None else np.sort(subset(len(split), self.train_limit))
        count = len(split) if chosen is None else len(chosen)
        return KeyedBatches(count, size, self.seed, start, rank, world, chosen)

    def val_dataloader(self) -> DataLoader[Any]:
        """Returns a loader of `val_limit` held-out samples. Rank r takes r, r + world, ...; none is used twice."""
        assert self.trainer is not None
        rows = np.sort(subset(len(self.val), self.val_limit))[self.trainer.global_rank :: self.trainer.world_size]
        visits = [Visit(int(row), epoch=0) for row in rows]
        batches = [visits[i : i + self.batch_size] for i in range(0, len(visits), self.batch_size)]
        return self._loader(self.val, batches)


class LatentData(PictureData):
    """The same data as latents and text tokens: `encode_with` sets the encoders, the first use writes the cache.
    A split that is `Prepared` is read from its store.

    Only training pictures are augmented: held-out pictures are not mirrored, and their latents are posterior modes.
    draws: adds the random numbers of the losses to each batch; None leaves that to the training process. pad_text: pad
    every text to the encoder's length, as a network needs that reads padding or is compiled; otherwise only to the
    longest text of its batch.
    """

    draws: TrainingDraws | None = None
    pad_text = True
    takes_buckets = False

    autoencoder: Autoencoder
    text_encoder: TextEncoder
    cache_dir: Path
    augmentation: Augmentation

    def encode_with(
        self,
        autoencoder: Autoencoder,
        text_encoder: TextEncoder,
        cache_dir: str | Path,
        augmentation: Augmentation = PLAIN,
    ) -> LatentData:
        """Sets the encoders and returns self. Raises ValueError if the augmentation needs a posterior and
        the autoencoder has none, or if a store was made by other encoders."""
        if augmentation.posterior == "sample" and autoencoder.posterior is None:
            raise ValueError(
                "data.posterior=sample: this autoencoder gives one latent and no posterior to sample from; choose "
                "data.posterior=mode, or an AutoencoderKL such as autoencoder=sd"
            )
        self.autoencoder, self.text_encoder, self.cache_dir = autoencoder, text_encoder, Path(cache_dir)
        self.augmentation = augmentation
        for split in (self.train, self.val):
            if isinstance(split, Prepared):
                if split.is_bucketed and not self.takes_buckets:
                    raise ValueError(f"{split.store.folder} has pictures in buckets: train with data=prepared_buckets")
                split.store.check(autoencoder, text_encoder, self._augmentation(split))
        return self

    def prepare_data(self) -> None:
        assert self.trainer is not None
        device = self.trainer.strategy.root_device
        self.autoencoder.to(device)
        for split in (split for split in self._cached() if not isinstance(split, Prepared)):
            augmentation = self._augmentation(split)
            build_cache(self._folder(split), split, self.autoencoder, self.text_encoder, augmentation, device)

    def _cached(self) -> list[CaptionedImages]:
        """Returns the splits, or parts of them, that have a cache each."""
        return [self.train, self.val]

    def _augmentation(self, split: CaptionedImages) -> Augmentation:
        return self.augmentation if split is self.train else PLAIN

    def _folder(self, split: CaptionedImages) -> Path:
        return cache_folder(self.cache_dir, split, self.autoencoder, self.text_encoder, self._augmentation(split))

    def _store(self, split: CaptionedImages) -> Shards:
        return split.store if isinstance(split, Prepared) else Store(self._folder(split))

    def _latents(self, split: CaptionedImages) -> Dataset[Batch]:
        length, choose = self.text_encoder.length if self.pad_text else None, split is not self.val
        return LatentDataset(self._store(split), length, self.seed, self._augmentation(split), choose)

    def read(self, split: CaptionedImages) -> Dataset[Any]:
        batches = self._latents(split)
        if self.draws is None:
            return batches
        return DrawnBatches(batches, self.draws.validation if split is self.val else self.draws)
