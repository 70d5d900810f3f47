"""Anyone's own pictures: a folder, with captions as HF `imagefolder`, as text files, from class folders, or without."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from dit.data.listing import Found, inspected, pictures_below, warn
from dit.data.picture_folder import PictureFiles
from dit.picture_files import PictureFile


def captioned(root: Path, template: str | None) -> list[tuple[Path, str]]:
    """Every picture below a folder that has a caption; the others are reported."""
    found, bare = [], []
    for file, caption in pictures_below(root):
        if not caption and template is not None and file.parent != root:
            name = file.parent.name.replace("_", " ")
            caption = template.replace("{}", name).replace("*", name)
        if caption:
            found.append((file, caption))
        else:
            bare.append(file)
    warn(root, bare, "have no caption and are left out")
    if not found:
        raise ValueError(f"data.path={root}: {no_captions(template, len(bare))}")
    return found


def no_captions(template: str | None, pictures: int) -> str:
    """Why a folder has no picture with a caption, and what to do."""
    if not pictures:
        return "there is no picture below it"
    if template is not None:
        return (
            f"data.template={template!r} takes captions from the names of class folders, and the {pictures} pictures "
            f"lie in no class folder; move each class into a folder of its own, add metadata.jsonl or a .txt beside "
            f"each picture, or train without captions by experiment=folder_unconditional"
        )
    return (
        f"none of its {pictures} pictures has a caption; add metadata.jsonl, metadata.csv or a .txt beside each, give "
        f"data.template='a photo of *' if they lie in class folders, or train without captions by "
        f"experiment=folder_unconditional"
    )


@cache
def scan(root: Path, template: str | None, captions: str) -> list[Found]:
    """Every captioned picture of a folder (every picture for captions=none) that can be read. Both splits share it."""
    if captions == "none":
        return inspected(root, [(file, "") for file, _ in pictures_below(root)])
    return inspected(root, captioned(root, template))


def place(seen: PictureFile) -> float:
    """Where a picture stands between 0 and 1, by the content of its file: below val_share it is held out."""
    return int.from_bytes(seen.digest[:8], "big") / 2**64


def working_share(places: Sequence[float], wanted: float) -> float | None:
    """The shortest number that is near `wanted` and leaves neither split empty; None where none can."""
    low, high = min(places), max(places)
    for digits in range(1, 16):
        near = min(max(wanted, low), high)
        for value in (math.floor(near * 10**digits) / 10**digits, math.ceil(near * 10**digits) / 10**digits):
            if 0 < value < 1 and low < value <= high:
                return value
    return None


class Folder(PictureFiles):
    """Pictures below `path`, centre-cropped to `size` x `size`, as the `train` or the `val` split.

    A caption is, in this order, the picture's row in a metadata.jsonl or metadata.csv, the .txt file beside it, or
    `template` with {} or * (which a command line need not quote) replaced by the name of the class folder it lies in;
    with captions="none" all pictures are taken and each has the caption "". Pictures that cannot be read or have no
    caption are left out, counted and named on stderr. `val_share` of the pictures, by a hash of their files' bytes, are
    the held-out split: it is the same for every size, two copies of one file are never on both sides, and adding
    pictures moves none. Raises ValueError where a split has no picture.
    """

    def __init__(
        self,
        path: str,
        size: int,
        split: str,
        template: str | None = None,
        val_share: float = 0.05,
        captions: str = "auto",
    ) -> None:
        if split not in ("train", "val"):
            raise ValueError(f"split={split!r} is neither 'train' nor 'val'")
        if size < 1:
            raise ValueError(f"data.size={size} must be at least 1")
        if not 0 < val_share < 1:
            raise ValueError(f"data.val_share={val_share} must lie between 0 and 1")
        if captions not in ("auto", "none"):
            raise ValueError(f"data.captions={captions} is neither auto nor none")
        if template is not None and "{}" not in template and "*" not in template:
            raise ValueError(
                f"data.template={template!r} must hold a * (or {{}}) where the name of the class folder goes, as in "
                f"data.template='a photo of *'"
            )
        root = Path(path)
        if not root.is_dir():
            raise ValueError(f"data.path={path}: no such folder")
        pictures = scan(root, template, captions)
        if not pictures:
            raise ValueError(f"data.path={path}: there is no picture below it that can be read")
        mine = [found for found in pictures if (place(found[2]) < val_share) == (split == "val")]
        if not mine:
            refuse_empty(root, [place(seen) for *_, seen in pictures], split, val_share)
        super().__init__("folder", root, size, mine)


def refuse_empty(root: Path, places: Sequence[float], split: str, val_share: float) -> None:
    """Raises ValueError that says which share leaves a picture in this split."""
    fault = f"data.path={root}: of {len(places)} pictures data.val_share={val_share} leaves the {split} "
    share = working_share(places, val_share)
    if share is None:
        raise ValueError(f"{fault}split empty, and any other share one of the two: add pictures that differ")
    raise ValueError(f"{fault}split empty; say data.val_share={share}, or add pictures")
