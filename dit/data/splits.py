"""Training and held-out images: by the names of folders and files as on the Hugging Face hub, or by a hash."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence

from dit.data.listing import warn
from dit.data.rows import Row

SPLITS = ("train", "val", "test")
NAMES = {  # those of HF datasets
    "train": ("train", "training"),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_OF = {name: split for split, names in NAMES.items() for name in names}


def split_of_folder(name: str) -> str | None:
    """Returns the split that a folder's name is of, or None."""
    return SPLIT_OF.get(name.lower())


def split_of_file(name: str) -> str | None:
    """Returns the split that a file's name has as a word, as in train-00000-of-00010.parquet, or None."""
    found = {SPLIT_OF[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_OF}
    return found.pop() if len(found) == 1 else None


def are_splits(names: set[str | None]) -> bool:
    """Returns True if these splits divide a source: there are training images, and others."""
    return "train" in names and len(names - {None}) > 1


def hash_fraction(row: Row) -> float:
    """Returns a hash of the picture's file in [0, 1): one below val_share is held out."""
    assert row.picture is not None
    return int.from_bytes(row.picture.digest[:8], "big") / 2**64


def divided(where: object, rows: Sequence[Row], val_share: float) -> dict[str, list[Row]]:
    """Returns the rows by split: those that the source names, or else the share `val_share` by hash as val."""
    if not are_splits({row.split for row in rows}):
        return by_hash(rows, val_share)
    warn(where, [row.name for row in rows if row.split is None], "are in none of its splits and are left out")
    found = {split: [row for row in rows if row.split == split] for split in SPLITS}
    if not found["val"]:
        print(
            f"{where}: has train and test and no validation; data.val_share={val_share} of train is held out for it, "
            f"and test is not used in training",
            file=sys.stderr,
        )
        found |= {split: some for split, some in by_hash(found["train"], val_share).items() if split != "test"}
    seen = {row.picture.digest for row in found["train"] if row.picture is not None}
    copies = [row.name for row in (*found["val"], *found["test"]) if row.picture and row.picture.digest in seen]
    warn(where, copies, "are held out and also, byte for byte, in its training split")
    return found


def by_hash(rows: Sequence[Row], val_share: float) -> dict[str, list[Row]]:
    held_out = [hash_fraction(row) < val_share for row in rows]
    return {
        "train": [row for row, out in zip(rows, held_out, strict=True) if not out],
        "val": [row for row, out in zip(rows, held_out, strict=True) if out],
        "test": [],
    }


def working_share(fractions: Sequence[float], share: float) -> float | None:
    """Returns the number of fewest digits near `share` that leaves neither split empty, or None if no number does."""
    low, high = min(fractions), max(fractions)
    for digits in range(1, 16):
        near = min(max(share, low), high)
        for value in (math.floor(near * 10**digits) / 10**digits, math.ceil(near * 10**digits) / 10**digits):
            if 0 < value < 1 and low < value <= high:
                return value
    return None


def refuse_empty(where: object, found: dict[str, list[Row]], split: str, val_share: float) -> None:
    """Raises ValueError for an empty split, with a share that leaves neither split empty."""
    if split == "test":
        raise ValueError(f"{where}: split='test' is not in it; name a folder or files test, or choose train or val")
    fractions = [hash_fraction(row) for split in ("train", "val") for row in found[split]]
    fault = f"{where}: for {len(fractions)} pictures data.val_share={val_share} leaves the {split} split empty"
    share = working_share(fractions, val_share)
    if share is None:
        raise ValueError(f"{fault}, and every other share leaves one split empty: add different pictures")
    raise ValueError(f"{fault}; use data.val_share={share}, or add pictures")
