"""Shards: the latents and text tokens of one split in files of bounded size, read in any order through memory maps.

A store is a folder with, for each shard, NUMBER.safetensors (the arrays below), NUMBER.parquet (captions and provenance,
a row for each sample) and NUMBER.json (its `Shard`), and manifest.json, which is written last. A folder without
a manifest is not finished. A shard's distinct captions are encoded once and stored without padding.

| array | shape | content |
|---|---|---|
| latents | (n, sides, M, C, h, w) float16 | of the picture and, with flip, of its mirror image; M = 1: the latent, M = 2: the mean and the standard deviation of its posterior |
| caption | (n,) int64 | the sample's first caption, an index in the next arrays |
| choice, choice_weight | (K,) int64, float64 | if pictures have several captions: each of them, with its weight |
| choice_ends | (n,) int64 | where the choices of each sample end |
| tokens | (T, D) float16 | the real tokens of all captions, one caption after the other |
| ends | (captions,) int64 | where the tokens of each caption end |
| pooled | (captions, P) float16 | |
| label | (captions,) int64 | |
| choice_ends | (n,) int64 | if a sample has several captions: where those of each sample end in the next arrays |
| choice, choice_weight | (K,) int64, float64 | the captions of each sample, one sample after the other, and their weights |
"""  # noqa: E501

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from dit.data.captions import chosen_caption
from dit.data.order import Visit
from dit.diffusion.noise import generator
from dit.errors import first_line
from dit.files import read_json
from dit.types import Autoencoder, Batch, Condition, TextEncoder

MANIFEST = "manifest.json"
RECORD = "prepare.yaml"  # beside the splits that dit-prepare wrote: its config of the data and the encoders
FORMAT = 1
OPEN = 512  # number of shards that are mapped at the same time


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

    def fault(self, folder: Path) -> str | None:
        """Returns what is wrong with a file, by existence and size alone, or None."""
        for name, (size, _) in self.files.items():
            file = folder / name
            if not file.is_file():
                return f"{file} is missing"
            if (found := file.stat().st_size) != size:
                return f"{file} has {found} bytes instead of {size}"
        return None


def encoded_by(autoencoder: Autoencoder, text: TextEncoder, augmentation: Augmentation) -> dict[str, Any]:
    """Returns what the arrays of a store depend on besides the pictures and captions, by name."""
    return {"autoencoder": autoencoder.fingerprint, "text_encoder": text.fingerprint, **asdict(augmentation)}


def differing(stored: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Returns the names whose values differ, with both values; "" if none does."""
    names = [name for name in given if stored.get(name) != given[name]]
    return ", ".join(f"{name} ({stored.get(name)}, not {given[name]})" for name in names)


@lru_cache(maxsize=OPEN)
def mapped(file: Path, digest: str) -> dict[str, Tensor]:
    """Returns the arrays of a shard, mapped into memory: pages are read when they are used, and may be dropped."""
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} cannot be read: {first_line(error)}; prepare the data again") from None


class Store:
    """A finished store. Opening it compares the size of every file, and with `verify` its SHA-256, with the manifest.

    Raises ValueError, with the file's name, if there is no manifest, or if a file is missing or damaged.
    """

    def __init__(self, folder: str | Path, verify: bool = False) -> None:
        self.folder = Path(folder)
        file = self.folder / MANIFEST
        if not file.is_file():
            raise ValueError(f"{file} is missing: {self.folder} is no store, or its preparation was not finished")
        manifest = read_json(file)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            found = manifest.get("format") if isinstance(manifest, dict) else None
            raise ValueError(f"{file} has format {found}, and this version of dit reads {FORMAT}")
        try:
            self.sources: list[dict[str, Any]] = manifest["sources"]
            self.shards = [Shard.read(value, str(file)) for value in manifest["shards"]]
            self.size: list[int] = manifest["size"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{file} is damaged: it has no {first_line(error)}") from None
        if not self.shards:
            raise ValueError(f"{file} lists no shard")
        self.starts = np.cumsum([0, *(shard.count for shard in self.shards)])
        self._check_files(verify)

    def _check_files(self, verify: bool) -> None:
        for shard in self.shards:
            if fault := shard.fault(self.folder):
                raise ValueError(f"{fault}; copy it again, or prepare the data again in this folder")
        if not verify:
            return
        names = [(name, digest) for shard in self.shards for name, (_, digest) in shard.files.items()]
        for name, digest in tqdm(names, desc=f"verifying {self.folder}", unit="file", leave=False):
            if sha256_of(self.folder / name) != digest:
                raise ValueError(f"{self.folder / name} is damaged: it has another SHA-256 than in {MANIFEST}; copy it")

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
        if fault := differing(self.fields, given):
            record = self.folder.parent / RECORD
            raise ValueError(
                f"{self.folder} differs from this config in {fault}; choose the encoders that made it"
                f"{f', those of {record}' if record.is_file() else ''}, or prepare the data again with these"
            )

    def locate(self, samples: Sequence[int]) -> list[tuple[int, int]]:
        """Returns the shard of each sample and its row there."""
        places = np.searchsorted(self.starts, samples, side="right") - 1
        return list(zip(places.tolist(), (np.asarray(samples) - self.starts[places]).tolist(), strict=True))

    def arrays(self, place: int) -> dict[str, Tensor]:
        """Returns the arrays of a shard, mapped into memory."""
        [name] = (name for name in self.shards[place].files if name.endswith(".safetensors"))
        return mapped(self.folder / name, self.shards[place].files[name][1])

    def table(self, place: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Returns the captions and the provenance of a shard's samples. Raises ValueError if they cannot be read."""
        [name] = (name for name in self.shards[place].files if name.endswith(".parquet"))
        try:
            return pq.read_table(self.folder / name, columns=columns, partitioning=None)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{self.folder / name} cannot be read: {first_line(error)}") from None


def sha256_of(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class StoredColumn(Sequence[Any]):
    """A column of a store's parquet files, read shard by shard. read: what to make of a value."""

    def __init__(self, store: Store, column: str, read: Callable[[Any], Any] = lambda value: value) -> None:
        self.store, self.column, self.read = store, column, read
        self.place, self.values = -1, list[Any]()  # the shard that was read last

    def __len__(self) -> int:
        return len(self.store)

    def _of(self, place: int) -> list[Any]:
        if place != self.place:
            values = self.store.table(place, [self.column])[self.column].to_pylist()
            self.place, self.values = place, [self.read(value) for value in values]
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


class LatentDataset(torch.utils.data.Dataset[Batch]):
    """A store, read in batches: a list of visits -> Batch, with text padded to `length` tokens, or with None to the
    longest text of its batch.

    Flips and posterior samples are functions of (seed, epoch, sample). augmentation: None for what the store was made
    for; a store with mirror images and posteriors can be read without them. choose: whether the caption of a sample
    that has several is a function of these keys too; else it is the first. first: the number of the store's first
    sample, if several stores are one data set.
    """

    def __init__(
        self,
        store: Store | Path,
        length: int | None,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        choose: bool = False,
        first: int = 0,
    ) -> None:
        self.first = first
        self.store = store if isinstance(store, Store) else Store(store)
        self.length, self.seed, self.choose = length, seed, choose
        _, sides, moments, *_ = self.store.arrays(0)["latents"].shape
        self.sides = sides if augmentation is None or augmentation.flip else 1
        self.moments = moments if augmentation is None or augmentation.posterior == "sample" else 1

    def __len__(self) -> int:
        return len(self.store)

    def _latents(self, visits: list[Visit], places: list[tuple[int, int]]) -> Tensor:
        """Returns latents, (B, C, h, w) float32."""
        shape = self.store.arrays(0)["latents"].shape[3:]
        found = torch.empty(len(visits), self.moments, *shape)
        noise = torch.empty(len(visits) if self.moments == 2 else 0, *shape)
        for i, (visit, (place, row)) in enumerate(zip(visits, places, strict=True)):
            side = 0
            if self.sides > 1 or self.moments > 1:
                # four keys; training noise has three, so that no random stream is used twice
                draw = generator(self.seed, visit.epoch, visit.sample, 0)
                side = int(torch.randint(self.sides, (), generator=draw))
                if self.moments > 1:
                    torch.randn(shape, generator=draw, out=noise[i])
            found[i] = self.store.arrays(place)["latents"][row, side, : self.moments]
        return found[:, 0] if self.moments == 1 else found[:, 0] + found[:, 1] * noise

    def _caption(self, shard: dict[str, Tensor], row: int, visit: Visit) -> int:
        """Returns the index of a visit's caption in its shard."""
        if not self.choose or "choice" not in shard:
            return int(shard["caption"][row])
        start, end = (int(shard["choice_ends"][row - 1]) if row else 0), int(shard["choice_ends"][row])
        if start == end:  # the empty caption
            return int(shard["caption"][row])
        weights = shard["choice_weight"][start:end].tolist()
        return int(shard["choice"][start + chosen_caption(weights, self.seed, visit.epoch, visit.sample)])

    def _condition(self, visits: list[Visit], places: list[tuple[int, int]]) -> Condition:
        shards = [self.store.arrays(place) for place, _ in places]
        own = (row for _, row in places)
        captions = [self._caption(*key) for key in zip(shards, own, visits, strict=True)]
        parts: dict[str, Any] = {}
        if "tokens" in shards[0]:
            texts = []
            for shard, caption in zip(shards, captions, strict=True):
                start, end = (int(shard["ends"][caption - 1]) if caption else 0), int(shard["ends"][caption])
                texts.append(shard["tokens"][start:end])
            lengths = torch.tensor([len(text) for text in texts])
            length = max(int(lengths.max()), 1) if self.length is None else self.length
            tokens = torch.empty(len(texts), length, texts[0].shape[1])
            for row, text in zip(tokens, texts, strict=True):
                row[: len(text)] = text
                row[len(text) :] = 0
            parts |= {"tokens": tokens, "mask": torch.arange(length) < lengths[:, None]}
        for name, dtype in (("pooled", torch.float32), ("label", torch.int64)):
            if name in shards[0]:
                rows = [shard[name][caption] for shard, caption in zip(shards, captions, strict=True)]
                parts[name] = torch.stack(rows).to(dtype)
        return Condition(**parts).unmasked()

    def __getitem__(self, visits: list[Visit]) -> Batch:
        index = [visit.sample for visit in visits]
        places = self.store.locate([sample - self.first for sample in index])
        epoch = torch.tensor([visit.epoch for visit in visits])
        return Batch(self._latents(visits, places), self._condition(visits, places), torch.tensor(index), epoch)
