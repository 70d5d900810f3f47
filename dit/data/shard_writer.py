"""Writes a store (`dit.data.shards`) by any number of processes, and resumable.

Each shard is a function of its rows alone, so that its files are equal whichever process writes them. A process takes
a shard by locking a file; a lock ends with its process, and the other processes then do that shard. A shard whose
record (NUMBER.json) is there is finished and not done again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from tqdm import tqdm

from dit import __version__
from dit.code_digest import code_digest
from dit.data.captions import choice_arrays
from dit.data.shard_encoding import CODE, Encoding, encode_images, encode_text, read_images, sidecar
from dit.data.shards import FORMAT, MANIFEST, Shard, Store, differing, encoded_by
from dit.files import POLL, locked, read_json, take, write_atomic
from dit.types import CaptionedImages

LEAST, MOST = 256, 2**20  # samples of a shard


@dataclass(frozen=True)
class Limits:
    """shard_mb: the largest size of a shard in 10^6 bytes, for captions of the greatest length (a shard has at least
    256 samples). max_broken: the number of pictures that may be left out because they cannot be read."""

    shard_mb: int = 512
    max_broken: int = 0


@dataclass(frozen=True)
class Wanted:
    """A store to write: its folder, its pictures, and how they are encoded."""

    folder: Path
    source: CaptionedImages
    how: Encoding


class Plan:
    """The shards of a source that a store needs: `parts`, the rows of each, which follow the shards that are there if
    the store is extended. broken: the pictures that all plans of a command leave out. Raises ValueError if the store
    has other encoders."""

    def __init__(self, wanted: Wanted, limits: Limits, broken: list[str]) -> None:
        folder, source, how = wanted.folder, wanted.source, wanted.how
        self.folder, self.source, self.how, self.limits, self.broken = folder, source, how, limits, broken
        self.parent = Store(folder) if (folder / MANIFEST).is_file() else None
        self.first = 0 if self.parent is None else len(self.parent.shards)
        rows = new_rows(source, self.parent)
        self.parts, self.fields = [], encoded_by(how.autoencoder, how.text, how.augmentation)
        if not len(rows):
            return
        self.fields["size"] = size_of(source, rows)
        if self.parent is not None and (fault := differing(self.parent.fields, self.fields)):
            raise ValueError(f"{folder} cannot be extended: it differs in {fault}; write another folder")
        stride = samples_of_shard(how, self.fields["size"], limits.shard_mb)
        self.fields |= {"source": source.fingerprint, "samples": stride, "code": code_digest(*CODE)}
        self.parts = [rows[start : start + stride] for start in range(0, len(rows), stride)]

    def file(self, part: int, kind: str) -> Path:
        return self.folder / f"{self.first + part:05d}.{kind}"

    def done(self, part: int) -> Shard | None:
        """Returns the record of a finished shard, or None. Raises ValueError if it is of another preparation."""
        file = self.file(part, "json")
        if not file.is_file():
            return None
        shard = Shard.read(read_json(file), str(file))
        if fault := differing(shard.fields, self.fields):
            raise ValueError(
                f"{self.folder} holds the beginning of another preparation, which differs in {fault}; finish that one, "
                f"choose another folder, or remove this one"
            )
        return None if shard.fault(self.folder) else shard

    def take(self, part: int, bar: tqdm) -> bool:
        """Writes a shard. Returns False if another process has it."""
        return take(self.file(part, "lock"), lambda: self.done(part), lambda: self.write(part, bar))

    def write(self, part: int, bar: tqdm) -> None:
        rows, latents, broken = encode_images(self.source, self.parts[part], self.how, bar.update)
        self.broken += broken
        self.check_broken()
        captions = [self.source.captions[row] for row in rows]
        several = getattr(self.source, "caption_choices", None)
        choices = [] if several is None else [several[row] for row in rows]
        texts = {text for image in choices for text, _ in image}
        place = {caption: number for number, caption in enumerate(sorted({*captions, *texts}))}
        arrays = {"latents": latents, "caption": torch.tensor([place[caption] for caption in captions])}
        arrays |= {name: torch.from_numpy(values) for name, values in choice_arrays(choices, place).items() if choices}
        arrays |= encode_text(list(place), self.how.text, self.how.chunk)
        contents = {"safetensors": safetensors.torch.save(arrays), "parquet": sidecar(self.source, rows)}
        files = {}
        for kind, content in contents.items():
            write_atomic(self.file(part, kind), content)
            files[self.file(part, kind).name] = (len(content), hashlib.sha256(content).hexdigest())
        shard = Shard(self.first + part, len(rows), files, self.fields, broken)
        write_atomic(self.file(part, "json"), json.dumps(asdict(shard), indent=1) + "\n")

    def check_broken(self) -> None:
        if len(self.broken) > self.limits.max_broken:
            raise ValueError(
                f"{len(self.broken)} pictures cannot be read, more than max_broken={self.limits.max_broken}: "
                f"{'; '.join(self.broken[:2])}; repair or remove them, or allow more; finished shards are kept"
            )

    def finish(self) -> None:
        """Writes the manifest, which names its parent if the store was extended, and removes what killed processes have
        left. Does nothing if another process has finished."""
        with locked(self.folder / "manifest.lock"):
            if not has_source(self.folder, self.source):
                self.write_manifest()

    def write_manifest(self) -> None:
        file = self.folder / MANIFEST
        before = file.read_bytes() if file.is_file() else None
        found = [self.done(part) for part in range(len(self.parts))]
        sources = [] if self.parent is None else self.parent.sources
        shards = [*([] if self.parent is None else self.parent.shards), *(shard for shard in found if shard)]
        count = sum(shard.count for shard in shards[self.first :])
        manifest = {
            "format": FORMAT,
            "dit": __version__,
            "parent": None if before is None else hashlib.sha256(before).hexdigest(),
            "size": self.fields["size"],
            "sources": [*sources, {"fingerprint": self.source.fingerprint, "count": count}],
            "shards": [asdict(shard) for shard in shards],
        }
        if before is not None:
            write_atomic(file.with_name(f"manifest-{manifest['parent'][:12]}.json"), before)
        write_atomic(file, json.dumps(manifest, indent=1) + "\n")
        for leftover in (*self.folder.glob(".*.tmp"), *self.folder.glob("[0-9]*.lock")):
            leftover.unlink(missing_ok=True)


def has_source(folder: Path, source: CaptionedImages) -> bool:
    """Returns whether a store is finished and has this source."""
    file = folder / MANIFEST
    return file.is_file() and source.fingerprint in [entry["fingerprint"] for entry in Store(folder).sources]


def new_rows(source: CaptionedImages, parent: Store | None) -> np.ndarray:
    """Returns the rows of a source that a store does not have: none if it has the source, else those whose SHA-256 is
    not in it, as far as both record it."""
    if parent is None:
        return np.arange(len(source))
    if source.fingerprint in [entry["fingerprint"] for entry in parent.sources]:
        return np.arange(0)
    provenance = getattr(source, "provenance", None)
    if provenance is None or "sha256" not in provenance.column_names:
        return np.arange(len(source))
    tables = [parent.table(place) for place in range(len(parent.shards))]
    there = {digest for table in tables if "sha256" in table.column_names for digest in table["sha256"].to_pylist()}
    digests = provenance["sha256"].to_pylist()
    return np.array(
        [row for row, digest in enumerate(digests) if digest is None or digest not in there], dtype=np.int64
    )


def size_of(source: CaptionedImages, rows: np.ndarray) -> list[int]:
    """Returns height and width of the first picture that can be read."""
    for row in rows:
        _, images, broken = read_images(source, np.array([row]))
        if not broken:
            return list(images.shape[2:])
    raise ValueError(f"none of {len(rows)} pictures can be read, the last because: {broken[0]}")


def samples_of_shard(how: Encoding, size: Sequence[int], shard_mb: int) -> int:
    """Returns the number of samples in a shard, a power of two, see `Limits`."""
    sides, kinds = 1 + how.augmentation.flip, 1 + (how.augmentation.posterior == "sample")
    latent = sides * kinds * math.prod(how.autoencoder.latent_shape(*size))
    text = how.text.length * how.text.sizes.get("token_dim", 0) + how.text.sizes.get("pooled_dim", 0)
    samples = shard_mb * 10**6 / (2 * (latent + text))
    return min(max(2 ** int(math.log2(max(samples, 1))), LEAST), MOST)


def write_store(
    folder: Path, source: CaptionedImages, how: Encoding, limits: Limits = Limits(), append: bool = False
) -> None:
    """Writes a store as `write_stores` does."""
    write_stores([Wanted(folder, source, how)], limits, append)


def write_stores(wanted: Sequence[Wanted], limits: Limits = Limits(), append: bool = False) -> None:
    """Writes stores, or finishes those that were begun, with the same encoders. Passes over a finished one; with
    `append`, adds the new rows of its source. Any number of processes may call it for the same folders; each takes the
    next shard of any of them, and returns when all are finished.

    Raises ValueError, in one line with the name of the file, if a file cannot be written or too many pictures cannot be
    read. Finished shards are kept.
    """
    broken = list[str]()
    plans = [Plan(one, limits, broken) for one in wanted if append or not (one.folder / MANIFEST).is_file()]
    plans = [plan for plan in plans if plan.parts]
    if not plans:
        return
    how = plans[0].how
    how.text.to(how.device)
    how.autoencoder.to(how.device)
    name = plans[0].folder.name if len(plans) == 1 else f"{len(plans)} stores"
    total, quiet = sum(len(rows) for plan in plans for rows in plan.parts), os.environ.get("LOCAL_RANK", "0") != "0"
    with tqdm(total=total, desc=f"encoding {name}", unit="image", leave=False, disable=quiet) as bar:
        write_shards(plans, bar)
    how.text.to("cpu")  # frees memory: it may be larger than the trained network, and only previews use it from now on
    plans[0].check_broken()
    if broken:
        print(f"warning: {len(broken)} pictures are left out: {'; '.join(broken[:5])}", file=sys.stderr)
    for plan in plans:
        plan.finish()


def write_shards(plans: Sequence[Plan], bar: tqdm) -> None:
    """Writes every shard that no other process has written or is writing. Returns when all are finished."""
    waiting = [(plan, part) for plan in plans for part in range(len(plan.parts))]
    while waiting:
        left = []
        for plan, part in waiting:
            if shard := plan.done(part):
                plan.broken += shard.left_out
                bar.update(len(plan.parts[part]))
            elif not plan.take(part, bar):
                left.append((plan, part))
        if waiting := left:
            time.sleep(POLL)
