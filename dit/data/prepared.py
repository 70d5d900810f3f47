"""A split of a data set that `dit-prepare` has encoded."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa

from dit.data.shards import Store, StoredCaptions


class Prepared:
    """The captions and the provenance of one split below `path`, the folder that `dit-prepare` wrote; its latents are
    read by `dit.data.module.LatentData`. It has no pictures.

    verify: reads every file and compares its SHA-256. Raises ValueError, with the name of the file, if one is missing
    or damaged, and if the pictures were not of `size` x `size`.
    """

    def __init__(self, path: str, split: str, size: int, verify: bool = False) -> None:
        root = Path(path)
        if not (root / split).is_dir():
            there = sorted(file.parent.name for file in root.glob("*/manifest.json"))
            found = f"it has {', '.join(there)}" if there else "dit-prepare has written nothing there"
            raise ValueError(f"data.path={path} has no prepared split {split}: {found}")
        self.store = Store(root / split, verify)
        if self.store.size != [size, size]:
            height, width = self.store.size
            raise ValueError(f"data.size={size}: the pictures in {root / split} were {height} x {width} pixels")
        self.captions, self.fingerprint = StoredCaptions(self.store), self.store.fingerprint

    def __len__(self) -> int:
        return len(self.store)

    @property
    def provenance(self) -> pa.Table:
        """One row for each sample; null where a part of the store has no such column."""
        tables = [self.store.table(place).drop_columns("caption") for place in range(len(self.store.shards))]
        return pa.concat_tables(tables, promote_options="permissive")

    def images(self, index: np.ndarray) -> NoReturn:
        """Raises ValueError: a store has latents only."""
        raise ValueError(
            f"{self.store.folder} has latents and no pictures: give pictures, real=FOLDER in evaluate.py, or leave "
            f"out the metrics that compare with real pictures"
        )
