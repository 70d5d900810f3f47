"""Shards: the latents and text tokens of one split in files of bounded size, read in any order (`shard_files`).

A store is a folder with, for each shard, NUMBER.safetensors (the arrays below), NUMBER.parquet (captions and provenance,
a row for each sample) and NUMBER.json (its `Shard`), and manifest.json, which is written last. A folder without
a manifest is not finished. A shard's distinct captions are encoded once and stored without padding.

A split of several parts, the buckets of one source or the sources of a mixture, is a folder of stores, with their names
in parts.json, which is written last.

| array | shape | content |
|---|---|---|
| latents | (n, sides, M, C, h, w) float16 | of the picture and, with flip, of its mirror image; M = 1: the latent, M = 2: the mean and the standard deviation of its posterior |
| caption | (n,) int64 | the sample's first caption, an index in the next arrays |
| tokens | (T, D) float16 | the real tokens of all captions, one caption after the other |
| ends | (captions,) int64 | where the tokens of each caption end |
| pooled | (captions, P) float16 | |
| label | (captions,) int64 | |
| choice_ends | (n,) int64 | if a sample has several captions: where those of each sample end in the next arrays |
| choice, choice_weight | (K,) int64, float64 | the captions of each sample, one sample after the other, and their weights |
"""  # noqa: E501

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor
from tqdm import tqdm

from dit.data import shard_files
from dit.data.remote import protocol_of, read_file, size_of
from dit.data.shard_files import ShardFile, at_hand
from dit.errors import first_line
from dit.files import parse_json
from dit.types import Autoencoder, TextEncoder

MANIFEST = "manifest.json"
PARTS = "parts.json"
RECORD = "prepare.yaml"  # beside the splits that dit-prepare wrote: its config of the data and the encoders
FORMAT = 1
CHECKS = 16  # files of a remote store whose sizes are requested at the same time


@dataclass(frozen=True)
class Augmentation:
    """The random changes that training applies each time it uses a picture.

    flip: mirrors it with probability 1/2. posterior: "mode", the mode of the autoencoder's posterior, or "sample", a
    sample of it, as in DiT's training (arXiv:2212.09748). A store has what they need: the latent of a mirrored picture
    differs from the mirrored latent, and a sample needs mean and standard deviation.
    """

    flip: bool = False
    posterior: str = "mode"

    def __post_init__(self) -> None:
        if self.posterior not in ("mode", "sample"):
            raise ValueError(f"data.posterior={self.posterior} is neither mode nor sample")


PLAIN = Augmentation()


@dataclass(frozen=True)
class Shard:
    """One finished shard: its number, its samples, bytes and SHA-256 of its files by name, what it depends on, and the
    pictures that could not be read, with the reasons."""

    number: int
    count: int
    files: dict[str, tuple[int, str]]
    fields: dict[str, Any]
    left_out: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, value: Any, where: str) -> Shard:
        """Returns the shard of a JSON value. Raises ValueError if it is not one."""
        try:
            files = {str(name): (int(size), str(digest)) for name, (size, digest) in value["files"].items()}
            return cls(int(value["number"]), int(value["count"]), files, dict(value["fields"]), list(value["left_out"]))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ValueError(f"{where} does not describe a shard of this version of dit") from None

    def fault(self, folder: str | Path) -> str | None:
        """Returns what is wrong with a file, by existence and size alone, or None."""
        for name, (size, _) in self.files.items():
            found = size_of(f"{folder}/{name}")
            if found is None:
                return f"{folder}/{name} is missing"
            if found != size:
                return f"{folder}/{name} has {found} bytes instead of {size}"
        return None


@dataclass(frozen=True)
class Parts:
    """What parts.json says: the names of the stores of a split, in order. kind: "buckets", by their sizes WIDTHxHEIGHT,
    or "mixture", the sources of one, with the weights that it was prepared with. size: data.size."""

    kind: str
    names: list[str]
    size: int
    weights: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | Path) -> Parts | None:
        """Returns the parts of a folder, None if it has no parts.json. Raises ValueError if that is damaged."""
        file = f"{folder}/{PARTS}"
        if size_of(file) is None:
            return None
        try:
            value = parse_json(read_file(file).decode(), file)
            weights = {str(name): float(weight) for name, weight in value["weights"].items()}
            parts = cls(str(value["kind"]), list(map(str, value["names"])), int(value["size"]), weights)
        except (KeyError, TypeError, AttributeError, UnicodeDecodeError):
            raise ValueError(f"{file} does not describe the parts of a store of this version of dit") from None
        if parts.kind not in ("buckets", "mixture") or not parts.names:
            raise ValueError(f"{file} has no parts of a kind that this version of dit reads: {parts.kind}")
        return parts


def encoded_by(autoencoder: Autoencoder, text: TextEncoder, augmentation: Augmentation) -> dict[str, Any]:
    """Returns what the arrays of a store depend on besides the pictures and captions, by name."""
    return {"autoencoder": autoencoder.fingerprint, "text_encoder": text.fingerprint, **asdict(augmentation)}


def differing(stored: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Returns the names whose values differ, with both values; "" if none does."""
    names = [name for name in given if stored.get(name) != given[name]]
    return ", ".join(f"{name} ({stored.get(name)}, not {given[name]})" for name in names)


class Shards:
    """Finished shards, one after the other: those of a store, or of several.

    files: the arrays ("safetensors") and the sidecar ("parquet") of each shard. counts: the number of samples of each
    store; sizes: height and width of their pictures.
    """

    def __init__(
        self,
        folder: str,
        shards: list[Shard],
        files: list[dict[str, ShardFile]],
        sources: list[dict[str, Any]],
        counts: list[int],
        sizes: list[list[int]],
    ) -> None:
        self.folder, self.shards, self.files, self.sources = folder, shards, files, sources
        self.counts, self.sizes = counts, sizes
        self.starts = np.cumsum([0, *(shard.count for shard in shards)])

    @classmethod
    def joined(cls, folder: str, stores: Sequence[Shards]) -> Shards:
        """Returns the shards of several stores, one store after the other."""
        names = ("shards", "files", "sources", "counts", "sizes")
        return Shards(folder, *([item for store in stores for item in getattr(store, name)] for name in names))

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def fields(self) -> dict[str, Any]:
        """What the arrays depend on, see `encoded_by`."""
        return self.shards[0].fields

    @property
    def fingerprint(self) -> str:
        """A digest of all pictures and captions: that of the source, if there is one."""
        digests = [str(source["fingerprint"]) for source in self.sources]
        return digests[0] if len(digests) == 1 else hashlib.sha256(repr(digests).encode()).hexdigest()[:16]

    def check(self, autoencoder: Autoencoder, text: TextEncoder, augmentation: Augmentation) -> None:
        """Raises ValueError, with the fields that differ, if the store was made by other encoders, or has no mirror
        images or no posteriors and they are needed."""
        given = encoded_by(autoencoder, text, augmentation)
        if not augmentation.flip:
            given.pop("flip")
        if augmentation.posterior == "mode":
            given.pop("posterior")
        for shard in self.shards:
            if fault := differing(shard.fields, given):
                record = Path(self.folder).parent / RECORD
                raise ValueError(
                    f"{self.folder} differs from this config in {fault}; choose the encoders that made it"
                    f"{f', those of {record}' if record.is_file() else ''}, or prepare the data again with these"
                )

    @property
    def firsts(self) -> list[int]:
        """The place of the first shard of each store."""
        ends = np.cumsum([0, *self.counts[:-1]])
        return np.searchsorted(self.starts, ends).tolist()

    def locate(self, samples: Sequence[int]) -> list[tuple[int, int]]:
        """Returns the shard of each sample and its row there."""
        places = np.searchsorted(self.starts, samples, side="right") - 1
        return list(zip(places.tolist(), (np.asarray(samples) - self.starts[places]).tolist(), strict=True))

    def shapes(self, place: int) -> dict[str, list[int]]:
        """Returns the shapes of the arrays of a shard by their names."""
        return shard_files.shapes(at_hand(self.files[place]["safetensors"]))

    def array(self, place: int, name: str) -> Tensor:
        """Returns an array of a shard, all of it."""
        return shard_files.array(at_hand(self.files[place]["safetensors"]), name)

    def rows(self, name: str, wanted: Sequence[tuple[int, int, int]]) -> list[Tensor]:
        """Returns rows `first` to `last` - 1 of the array `name` of shards (place, first, last)."""
        return shard_files.rows_of(
            name, [(at_hand(self.files[place]["safetensors"]), first, last) for place, first, last in wanted]
        )

    def table(self, place: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Returns the captions and the provenance of a shard's samples, or those of the given columns that it has.
        Raises ValueError if they cannot be read."""
        file = at_hand(self.files[place]["parquet"]).url
        try:
            return pq.ParquetFile(io.BytesIO(read_file(file))).read(columns)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file} cannot be read: {first_line(error)}") from None


class Store(Shards):
    """A finished store in a folder, at a URL or in an object store (`dit.data.remote`), or the stores of a split's
    parts. Opening it compares the size of every file with the manifest, and with `verify` its SHA-256.

    copies: a folder for copies of the files of a remote store, made when they are first used; None reads ranges of
    bytes in every batch. Raises ValueError, with the file's name, if there is no manifest, or if a file is missing or
    damaged, or cannot be reached.
    """

    def __init__(self, folder: str | Path, verify: bool = False, copies: str | None = None) -> None:
        place = str(folder)
        self.parts = Parts.read(place)
        if self.parts is not None:
            found = Shards.joined(place, [Store(f"{place}/{name}", verify, copies) for name in self.parts.names])
        else:
            found = read_manifest(place, copies)
            check_sizes(found)
            if verify:
                check_digests(found)
        super().__init__(place, found.shards, found.files, found.sources, found.counts, found.sizes)


def read_manifest(folder: str, copies: str | None) -> Shards:
    """Returns the shards that the manifest of a store lists."""
    file = f"{folder}/{MANIFEST}"
    if size_of(file) is None:
        raise ValueError(f"{file} is missing: {folder} is no store, or its preparation was not finished")
    try:
        manifest = parse_json(read_file(file).decode(), file)
    except UnicodeDecodeError:
        raise ValueError(f"{file} is damaged: it is not UTF-8") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise ValueError(f"{file} has format {found}, and this version of dit reads {FORMAT}")
    try:
        shards = [Shard.read(value, file) for value in manifest["shards"]]
        sources, size = list(manifest["sources"]), list(manifest["size"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged: it has no {first_line(error)}") from None
    if not shards:
        raise ValueError(f"{file} lists no shard")
    files = [
        {
            name.rpartition(".")[2]: ShardFile(f"{folder}/{name}", size, digest, copies)
            for name, (size, digest) in shard.files.items()
        }
        for shard in shards
    ]
    return Shards(folder, shards, files, sources, [sum(shard.count for shard in shards)], [size])


def check_sizes(store: Shards) -> None:
    """Raises ValueError, with the file's name, if a file of a store is missing or has another size."""
    with ThreadPoolExecutor(CHECKS if protocol_of(store.folder) else 1) as pool:
        for fault in pool.map(lambda shard: shard.fault(store.folder), store.shards):
            if fault:
                raise ValueError(f"{fault}; copy it again, or prepare the data again in this folder")


def check_digests(store: Shards) -> None:
    """Raises ValueError, with the file's name, if a file of a store has another SHA-256."""
    files = [file for files in store.files for file in files.values()]
    for file in tqdm(files, desc=f"verifying {store.folder}", unit="file", leave=False):
        if (found := at_hand(file)).sha256() != file.digest:
            raise ValueError(f"{found.url} is damaged: it has another SHA-256 than in {MANIFEST}; copy it")
