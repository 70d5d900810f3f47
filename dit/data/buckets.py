"""Aspect-ratio buckets: each picture is cropped to the nearest of a few sizes with about the same area, and a batch has
pictures of one size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from dit.data.order import Permutation, Visit

Size = tuple[int, int]  # (height, width) in pixels
PUBLISHED = (256, 512, 1024)


def aspect_ratio_bins(size: int, multiple: int) -> list[Size]:
    """Returns sizes of about size x size pixels with ratios from 1:4 to 4:1, each side a multiple of `multiple`.

    They are diffusers' `ASPECT_RATIO_{256,512,1024}_BIN` (PixArt), those of 512 scaled for other sizes, and each side
    rounded to the nearest multiple. Raises ValueError if size is not a multiple.
    """
    from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha as pixart

    if size % multiple:
        raise ValueError(f"data.size={size} must be a multiple of {multiple}, the pixels of a bucket's side")
    published = size if size in PUBLISHED else 512
    bins = getattr(pixart, f"ASPECT_RATIO_{published}_BIN").values()
    scaled = [[max(round(side * size / published / multiple), 1) * multiple for side in sides] for sides in bins]
    return sorted({(height, width) for height, width in scaled})


def nearest_bin(bins: Sequence[Size], height: int, width: int) -> int:
    """Returns the index of the bin whose log aspect ratio is nearest to that of a picture, the first of equal ones."""
    ratio = math.log(height / width)
    distances = [abs(math.log(h / w) - ratio) for h, w in bins]
    return distances.index(min(distances))


def batch_sizes(bins: Sequence[Size], batch_size: int, size: int, multiple: int) -> list[int]:
    """Returns the batch size of each bin with about as many pixels as `batch_size` pictures of size x size, each a
    multiple of `multiple`, which the number of ranks must divide. Raises ValueError if batch_size is not a multiple."""
    if batch_size % multiple:
        raise ValueError(f"batch_size={batch_size} must be a multiple of data.module.batch_multiple={multiple}")
    pixels = batch_size * size * size
    return [max(round(pixels / (height * width) / multiple), 1) * multiple for height, width in bins]


class BucketBatches(Sampler[list[Visit]]):
    """Endless batches of visits, each of one bucket, which is the same on all ranks. A batch is that of an optimizer
    step; with accumulated gradients it comes in `parts` equal parts, so that its samples do not depend on their number.

    counts: the samples of each bucket; sample numbers continue from bucket to bucket. sizes: the batch size of each.
    Bucket k is an endless sequence of epochs, each a permutation keyed by (seed, epoch, k), cut into batches, so a
    remainder continues in the next epoch, and every epoch uses every sample once. Epoch e of the run has the batches
    that end in epoch e of their buckets, in an order keyed by (seed, e). Batch s is therefore a function of (seed, s):
    starting at `start` gives the same batches as iterating to it, for any number of ranks, workers and parts.
    """

    def __init__(
        self,
        counts: Sequence[int],
        sizes: Sequence[int],
        seed: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        parts: int = 1,
    ) -> None:
        wrong = [size for size in sizes if size % (world * parts) or size < 1]
        if wrong:
            raise ValueError(
                f"a bucket's batch of {wrong[0]} pictures is not a multiple of the number of processes ({world}) times "
                f"accumulate_grad_batches ({parts}); set data.module.batch_multiple to a multiple of it"
            )
        if not any(counts):
            raise ValueError("the buckets have no pictures")
        self.counts, self.sizes, self.seed = list(counts), list(sizes), seed
        self.start, self.rank, self.world, self.parts = start, rank, world, parts
        self.first = [0, *itertools.accumulate(self.counts)]  # the sample number where each bucket begins

    def batches_until(self, epoch: int) -> list[int]:
        """Returns the number of batches of each bucket that end before an epoch begins."""
        return [epoch * count // size for count, size in zip(self.counts, self.sizes, strict=True)]

    def epoch_of(self, step: int) -> int:
        """Returns the epoch of the run that has a batch."""
        per_epoch = sum(count / size for count, size in zip(self.counts, self.sizes, strict=True))
        epoch = max(int(step / per_epoch) - 1, 0)
        while sum(self.batches_until(epoch + 1)) <= step:
            epoch += 1
        return epoch

    def batch_at(self, place: int, epoch: int) -> tuple[int, int]:
        """Returns the (bucket, number of the batch in its bucket) at a place in the unshuffled batches of an epoch."""
        for bucket, (low, high) in enumerate(
            zip(self.batches_until(epoch), self.batches_until(epoch + 1), strict=True)
        ):
            if place < high - low:
                return bucket, low + place
            place -= high - low
        raise IndexError(f"epoch {epoch} has fewer batches")

    def __iter__(self) -> Iterator[list[Visit]]:
        orders: dict[int, tuple[int, Permutation]] = {}  # bucket -> (epoch, its permutation)
        begin = self.epoch_of(self.start)
        skipped = self.start - sum(self.batches_until(begin))
        for epoch in itertools.count(begin):
            total = sum(self.batches_until(epoch + 1)) - sum(self.batches_until(epoch))
            order = Permutation(total, self.seed, epoch)
            for step in range(skipped, total):
                bucket, number = self.batch_at(int(order(np.array([step]))[0]), epoch)
                first, last = number * self.sizes[bucket], (number + 1) * self.sizes[bucket]
                rows = np.arange(first + self.rank, last, self.world)
                for part in np.split(rows, self.parts):
                    yield self._visits(bucket, part, orders)
            skipped = 0

    def _visits(self, bucket: int, rows: np.ndarray, orders: dict[int, tuple[int, Permutation]]) -> list[Visit]:
        """Returns the visits of rows (N,) of a bucket's endless sequence, which may lie in several epochs."""
        epochs, visits = rows // self.counts[bucket], []
        for epoch in np.unique(epochs).tolist():
            if bucket not in orders or orders[bucket][0] != epoch:
                orders[bucket] = epoch, Permutation(self.counts[bucket], self.seed, epoch, bucket)
            samples = orders[bucket][1](rows[epochs == epoch] % self.counts[bucket]) + self.first[bucket]
            visits += [Visit(sample, epoch) for sample in samples.tolist()]
        return visits
