"""A split of a data set that `dit-prepare` has encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, overload

import numpy as np
import pyarrow as pa

from dit.data.captions import Captions
from dit.data.mixture import check_weights
from dit.data.remote import protocol_of
from dit.data.shards import Shards, Store


class StoredColumn(Sequence[Any]):
    """A value for each sample of a store, read shard by shard: `read` returns those of the shard at a place."""

    def __init__(self, store: Shards, read: Callable[[int], list[Any]]) -> None:
        self.store, self.read = store, read
        self.place, self.values = -1, list[Any]()  # the shard that was read last

    def __len__(self) -> int:
        return len(self.store)

    def _of(self, place: int) -> list[Any]:
        if place != self.place:
            self.place, self.values = place, self.read(place)
        return self.values

    def __iter__(self) -> Iterator[Any]:
        for place in range(len(self.store.shards)):
            yield from self._of(place)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        [(place, row)] = self.store.locate([index % len(self)])
        return self._of(place)[row]


class Prepared:
    """The captions and the provenance of one split below `path`, the folder or URL of what `dit-prepare` wrote; its
    latents are read by `dit.data.module.LatentData`, and those of buckets by `dit.data.bucket_data.BucketData`. It has
    no pictures.

    verify: reads every file and compares its SHA-256. copies: a folder for copies of the files of a URL, see `Store`.
    weights: of the sources of a mixture, by their names; None for those that it was prepared with. Raises ValueError,
    with the name of the file, if one is missing or damaged, and if the pictures were not of this size.
    """

    def __init__(
        self,
        path: str,
        split: str,
        size: int,
        verify: bool = False,
        copies: str | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        if protocol_of(path) is None and not (Path(path) / split).is_dir():
            there = sorted({file.relative_to(path).parts[0] for file in Path(path).glob("*/**/manifest.json")})
            found = f"it has {', '.join(there)}" if there else "dit-prepare has written nothing there"
            raise ValueError(f"data.path={path} has no prepared split {split}: {found}")
        self.store = Store(f"{path.rstrip('/')}/{split}", verify, copies)
        parts, sizes = self.store.parts, self.store.sizes
        if (parts.size if parts else sizes[0][0]) != size or (not self.is_bucketed and sizes[0] != [size, size]):
            was = f"data.size={parts.size}" if parts else f"{sizes[0][0]} x {sizes[0][1]} pixels"
            raise ValueError(f"data.size={size}: the pictures in {self.store.folder} were {was}")
        self.weights = self._weights(weights)
        self.captions, self.fingerprint = StoredColumn(self.store, self._captions), self.store.fingerprint
        if any("choice" in self.store.shapes(place) for place in self.store.firsts):
            self.caption_choices = StoredColumn(self.store, self._choices)

    def _captions(self, place: int) -> list[str]:
        return self.store.table(place, ["caption"])["caption"].to_pylist()

    def _choices(self, place: int) -> list[Captions]:
        """Returns all captions of the pictures of a shard with their weights; a part may have only one of each."""
        rows = self.store.table(place, ["caption", "captions"]).to_pylist()
        several = [tuple((pair["text"], pair["weight"]) for pair in row.get("captions") or ()) for row in rows]
        return [pairs or ((row["caption"], 1.0),) for pairs, row in zip(several, rows, strict=True)]

    @property
    def is_bucketed(self) -> bool:
        """Whether the pictures are in buckets, each of its size."""
        return self.store.parts is not None and self.store.parts.kind == "buckets"

    def _weights(self, given: Mapping[str, float] | None) -> list[float] | None:
        """Returns the weights of the sources of a mixture, None if it is none."""
        parts = self.store.parts
        if parts is None or parts.kind != "mixture":
            if given is not None:
                raise ValueError(f"data.weights={dict(given)}: {self.store.folder} is no mixture; leave them out")
            return None
        return check_weights(parts.names, given or parts.weights)

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
