"""A folder of pictures, with captions as in HF `imagefolder`, in text files, from class folders, or without any."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from dit.data.listing import Found, inspected, pictures_below, warn
from dit.data.picture_folder import PictureFiles
from dit.picture_files import PictureFile


def captioned(root: Path, template: str | None) -> list[tuple[Path, str]]:
    """Returns every picture below a folder that has a caption. Reports the others. Raises ValueError if none has."""
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
    """Returns why a folder has no picture with a caption, and the remedy."""
    if not pictures:
        return "there is no picture below it"
    if template is not None:
        return (
            f"data.template={template!r} takes captions from the names of class folders, and the {pictures} pictures "
            f"are in no class folder; move each class into its own folder, add metadata.jsonl or a .txt beside each "
            f"picture, or train without captions with experiment=folder_unconditional"
        )
    return (
        f"none of its {pictures} pictures has a caption; add metadata.jsonl, metadata.csv or a .txt beside each, give "
        f"data.template='a photo of *' if they are in class folders, or train without captions with "
        f"experiment=folder_unconditional"
    )


@cache
def scan(root: Path, template: str | None, captions: str) -> list[Found]:
    """Returns every readable picture of a folder that has a caption, or every one if captions is "none". Both splits
    use the cached result."""
    if captions == "none":
        return inspected(root, [(file, "") for file, _ in pictures_below(root)])
    return inspected(root, captioned(root, template))


def hash_fraction(picture: PictureFile) -> float:
    """Returns a hash of the file's content in [0, 1): a picture below val_share is held out."""
    return int.from_bytes(picture.digest[:8], "big") / 2**64


def working_share(fractions: Sequence[float], share: float) -> float | None:
    """Returns the number of fewest digits near `share` that leaves neither split empty, or None if no number does."""
    low, high = min(fractions), max(fractions)
    for digits in range(1, 16):
        near = min(max(share, low), high)
        for value in (math.floor(near * 10**digits) / 10**digits, math.ceil(near * 10**digits) / 10**digits):
            if 0 < value < 1 and low < value <= high:
                return value
    return None


class Folder(PictureFiles):
    """Pictures below `path`, centre-cropped to `size` x `size`, as the `train` or the `val` split.

    A caption is the first of: the picture's row in a metadata.jsonl or metadata.csv, the .txt file beside it, and
    `template` with {} or * (which needs no quotes in a shell) replaced by the name of the class folder. With
    captions="none", all pictures are used and each has the caption "". Pictures that cannot be read or have no caption
    are left out, counted and named on stderr. The held-out split is the share `val_share` of the pictures, chosen by a
    hash of the bytes of each file: it is the same for every size, copies of a file are in the same split, and new
    pictures do not change the split of others. Raises ValueError if a split is empty.
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
                f"data.template={template!r} must contain a * (or {{}}) for the name of the class folder, as in "
                f"data.template='a photo of *'"
            )
        root = Path(path)
        if not root.is_dir():
            raise ValueError(f"data.path={path}: no such folder")
        pictures = scan(root, template, captions)
        if not pictures:
            raise ValueError(f"data.path={path}: there is no picture below it that can be read")
        chosen = [found for found in pictures if (hash_fraction(found[2]) < val_share) == (split == "val")]
        if not chosen:
            refuse_empty(root, [hash_fraction(picture) for *_, picture in pictures], split, val_share)
        super().__init__("folder", root, size, chosen)


def refuse_empty(root: Path, fractions: Sequence[float], split: str, val_share: float) -> None:
    """Raises ValueError with a share that leaves neither split empty."""
    fault = f"data.path={root}: for {len(fractions)} pictures data.val_share={val_share} leaves the {split} split empty"
    share = working_share(fractions, val_share)
    if share is None:
        raise ValueError(f"{fault}, and every other share leaves one split empty: add different pictures")
    raise ValueError(f"{fault}; use data.val_share={share}, or add pictures")
