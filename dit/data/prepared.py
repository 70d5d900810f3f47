"""A split of a data set that `dit-prepare` has encoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

from dit.data.captions import Captions
from dit.data.shards import Store, StoredColumn


def pairs_of(value: list[dict[str, Any]] | None) -> Captions:
    """Returns the captions of a picture with their weights, from a value of the column captions."""
    return tuple((pair["text"], pair["weight"]) for pair in value or ())


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
        self.captions, self.fingerprint = StoredColumn(self.store, "caption"), self.store.fingerprint
        if "captions" in self.store.table(0).column_names:
            self.caption_choices = StoredColumn(self.store, "captions", pairs_of)

    def __len__(self) -> int:
        return len(self.store)

    @property
    def provenance(self) -> pa.Table:
        """One row for each sample; null where a part of the store has no such column."""
        tables = [self.store.table(place) for place in range(len(self.store.shards))]
        texts = [[name for name in ("caption", "captions") if name in table.column_names] for table in tables]
        tables = [table.drop_columns(names) for table, names in zip(tables, texts, strict=True)]
        return pa.concat_tables(tables, promote_options="permissive")

    def images(self, index: np.ndarray) -> NoReturn:
        """Raises ValueError: a store has latents only."""
        raise ValueError(
            f"{self.store.folder} has latents and no pictures: give pictures, real=FOLDER in evaluate.py, or leave "
            f"out the metrics that compare with real pictures"
        )
