"""Existing pictures to score, and references to score against, from a path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from dit.data.npz import NpzPictures, members
from dit.data.picture_folder import PictureFolder
from dit.data.source import Images
from dit.distributed import rank_batches
from dit.metrics.statistics import Statistics, read_statistics
from dit.picture_files import Size, size_text
from dit.scoring.references import size_of, subset_indices
from dit.scoring.samples import Done, SampleBatch
from dit.types import CaptionedImages


def pictures_at(path: str | Path, size: Size | None = None, cache_dir: str | None = None) -> CaptionedImages:
    """Returns the pictures of a folder or of an npz. size: the pictures of a folder are cropped and scaled to it.
    cache_dir: where it is kept what is known of the files, see `dit.data.folder`.

    Raises ValueError if there are no pictures, or if those of an npz have another size.
    """
    path = Path(path)
    if path.is_dir():
        return PictureFolder(path, size, cache_dir)
    if path.suffix != ".npz" or not path.is_file():
        fault = "is neither a folder nor an npz" if path.exists() else "does not exist"
        raise ValueError(f"{path} {fault}; give a folder of pictures, or an npz with arr_0 of (N, H, W, 3) uint8")
    pictures = NpzPictures(path)
    if size is not None and size_text(size_of(pictures)) != size_text(size):
        raise ValueError(
            f"size={size_text(size)}: the pictures of {path} are {size_text(size_of(pictures))}, and only those of a "
            f"folder are cropped"
        )
    return pictures


def at_size(source: CaptionedImages, size: tuple[int, int]) -> CaptionedImages | None:
    """Returns the source with its pictures at a size (width, height); None if they have another one and cannot be
    cropped, because they do not come from files."""
    if isinstance(source, Images):
        return source if source.size in (size, squared(size)) else source.at(squared(size))
    return source if size_of(source) == size else None


def squared(size: tuple[int, int]) -> Size:
    """Returns the side of a square, which names its pictures in fingerprints, or else the size."""
    return size[0] if size[0] == size[1] else size


def reference_at(
    path: str | Path, size: Size | None = None, statistics: bool = False, cache_dir: str | None = None
) -> CaptionedImages | Statistics:
    """Returns the reference: the pictures of a folder or an npz, or the statistics of an npz that has no
    pictures, or of any npz if `statistics` is True."""
    path = Path(path)
    if path.is_file() and path.suffix == ".npz" and (statistics or "arr_0" not in members(path)):
        return read_statistics(path)
    if statistics:
        raise ValueError(f"{path} has no statistics; give an npz with mu and sigma")
    return pictures_at(path, size, cache_dir)


def given_pictures(
    source: CaptionedImages,
    prompts: Sequence[str],
    batch_size: int,
    done: Done = lambda images: None,
) -> Iterator[SampleBatch]:
    """Returns this rank's share of a picture for every prompt, chosen from the source by `subset_indices`. Calls `done`
    with the number of pictures in each batch. Raises ValueError before the first batch if the source has fewer."""
    n = len(prompts)
    if n < 1 or batch_size < 1:
        raise ValueError(f"n={n} and batch_size={batch_size} must be at least 1")
    if n > len(source):
        raise ValueError(f"n={n} pictures are to be scored, and there are {len(source)}; use n={len(source)} or less")

    places = subset_indices(len(source), n)

    def batches() -> Iterator[SampleBatch]:
        for rows in rank_batches(n, batch_size):
            images = torch.from_numpy(source.images(places[rows]))
            done(len(rows))
            yield SampleBatch(images, [prompts[i] for i in rows], rows)

    return batches()
