"""Pictures and references that were not made here, by where they lie."""

from __future__ import annotations

from pathlib import Path

from dit.data.npz import NpzPictures, members
from dit.data.picture_folder import PictureFolder
from dit.metrics.statistics import Statistics, read_statistics
from dit.types import CaptionedImages


def pictures_at(path: str | Path, size: int | None = None) -> CaptionedImages:
    """Those of a folder or of an npz. size: the side of the square that a folder's are cropped and scaled to.

    Raises ValueError where there are none, and for an npz whose pictures are not `size` x `size`.
    """
    path = Path(path)
    if path.is_dir():
        return PictureFolder(path, size)
    if path.suffix != ".npz" or not path.is_file():
        fault = "is neither a folder nor an npz" if path.exists() else "does not exist"
        raise ValueError(f"{path} {fault}; give a folder of pictures, or an npz with arr_0 of (N, H, W, 3) uint8")
    pictures = NpzPictures(path)
    if size is not None and pictures.shape[1:3] != (size, size):
        height, width = pictures.shape[1:3]
        raise ValueError(
            f"size={size}: the pictures of {path} are {width}x{height}, and only a folder's can be cropped"
        )
    return pictures


def reference_at(path: str | Path, size: int | None = None, statistics: bool = False) -> CaptionedImages | Statistics:
    """What to measure against: the pictures of a folder or an npz, or the statistics of an npz that has no pictures or
    whose `statistics` are asked for."""
    path = Path(path)
    if path.is_file() and path.suffix == ".npz" and (statistics or "arr_0" not in members(path)):
        return read_statistics(path)
    if statistics:
        raise ValueError(f"{path} holds no statistics: they are an npz with mu and sigma")
    return pictures_at(path, size)
