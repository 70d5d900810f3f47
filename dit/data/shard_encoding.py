"""Computes the arrays of one shard (`dit.data.shards`): pictures are decoded while others are encoded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from dit.data.captions import Captions
from dit.data.loader import Loader, is_dead_worker
from dit.data.shards import PLAIN, Augmentation
from dit.picture_files import UnreadablePicture
from dit.types import Autoencoder, CaptionedImages, TextEncoder, from_pixels

HALF = 65504  # the largest number of float16
# the code that computes the arrays of a shard
CODE = (
    *("data/captions", "data/shard_encoding", "data/shard_writer"),
    *("encoders", "layers/embeddings", "picture_files", "types"),
)
Chunk = tuple[np.ndarray, Tensor, list[str]]  # rows (n,), their images (n, 3, H, W) uint8, and those left out


@dataclass(frozen=True)
class Encoding:
    """How samples are encoded: `chunk` at a time on `device`, decoded by `workers` processes, or by a thread if 0."""

    autoencoder: Autoencoder
    text: TextEncoder
    augmentation: Augmentation = PLAIN
    device: torch.device | str = "cpu"
    chunk: int = 256
    workers: int = 0


def read_images(source: CaptionedImages, rows: np.ndarray) -> Chunk:
    """Returns the images of these rows that can be read, and the reasons for those that cannot."""
    try:
        return rows, torch.from_numpy(source.images(rows)), []
    except UnreadablePicture:
        kept, images, broken = [], [torch.empty(0)], []
        for row in rows:
            try:
                images.append(torch.from_numpy(source.images(np.array([row]))))
                kept.append(row)
            except UnreadablePicture as error:
                broken.append(str(error))
        return np.array(kept, dtype=np.int64), torch.cat(images[bool(kept) :]), broken


def decoded(source: CaptionedImages, chunks: Sequence[np.ndarray], workers: int) -> Iterator[Chunk]:
    """Yields the chunks in order; the next ones are decoded at the same time. Raises ValueError if a worker dies."""
    if not workers:
        with ThreadPoolExecutor(1) as pool:
            ahead = deque(pool.submit(read_images, source, rows) for rows in chunks[:2])
            for rows in [*chunks[2:], None, None][: len(chunks)]:
                yield ahead.popleft().result()
                if rows is not None:
                    ahead.append(pool.submit(read_images, source, rows))
        return
    try:
        yield from Loader(partial(read_images, source), chunks, workers)
    except RuntimeError as error:
        if not is_dead_worker(error):
            raise
        raise ValueError(
            f"a process that decodes pictures ended unexpectedly, as when memory runs out; start again with fewer than "
            f"workers={workers}: finished shards are kept"
        ) from None


def moments(autoencoder: Autoencoder, images: Tensor, posterior: str) -> Tensor:
    """Returns (B, M, C, h, w) of images (B, 3, H, W) in [-1, 1]: the latent (M = 1), or the mean and standard deviation
    of its posterior (M = 2)."""
    if posterior == "mode":
        return autoencoder.encode(images)[:, None]
    assert autoencoder.posterior is not None
    return torch.stack(autoencoder.posterior(images), dim=1)


def encode_images(
    source: CaptionedImages, rows: np.ndarray, how: Encoding, update: Callable[[int], object]
) -> tuple[np.ndarray, Tensor, list[str]]:
    """Returns the rows that can be read, their latents (n, sides, M, C, h, w) float16, and those left out."""
    chunks = [rows[first : first + how.chunk] for first in range(0, len(rows), how.chunk)]
    kept, latents, broken = [], [], []
    for found, pixels, faults in decoded(source, chunks, how.workers):
        broken += faults
        if len(found):
            images = from_pixels(pixels).to(how.device)
            sides = [images, images.flip(-1)] if how.augmentation.flip else [images]
            both = [moments(how.autoencoder, side, how.augmentation.posterior) for side in sides]
            kept.append(found)
            latents.append(torch.stack(both, dim=1).half().cpu())
        update(len(found) + len(faults))
    if not kept:
        raise ValueError(f"none of {len(rows)} pictures can be read: {'; '.join(broken[:2])}")
    return np.concatenate(kept), torch.cat(latents), broken


def encode_text(captions: Sequence[str], text: TextEncoder, chunk: int) -> dict[str, Tensor]:
    """Returns the arrays of distinct captions. Raises ValueError if states exceed float16's range."""
    captions = text.fit(captions)  # all captions in one call, so that truncation is reported once
    parts: dict[str, list[Tensor]] = {}
    for first in range(0, len(captions), chunk):
        condition = text.encode(captions[first : first + chunk])
        if condition.tokens is not None and condition.tokens.abs().max() > HALF:
            raise ValueError(
                f"the text encoder's states exceed {HALF}, float16's range; choose another layer, or normalize"
            )
        if condition.tokens is not None and condition.mask is not None:
            parts.setdefault("tokens", []).append(condition.tokens[condition.mask].half().cpu())
            parts.setdefault("ends", []).append(condition.mask.sum(1).cpu())
        if condition.pooled is not None:
            parts.setdefault("pooled", []).append(condition.pooled.half().cpu())
        if condition.label is not None:
            parts.setdefault("label", []).append(condition.label.cpu())
    whole = {name: torch.cat(chunks) for name, chunks in parts.items()}
    return whole | {"ends": whole["ends"].cumsum(0)} if "ends" in whole else whole


def sidecar(source: CaptionedImages, rows: np.ndarray) -> bytes:
    """Returns the content of a parquet file with the captions and the provenance of these rows."""
    table = pa.table({"caption": pa.array([source.captions[row] for row in rows], pa.string())})
    choices: Sequence[Captions] | None = getattr(source, "caption_choices", None)
    if choices is not None:
        pairs = [[{"text": text, "weight": weight} for text, weight in choices[row]] for row in rows]
        kind = pa.list_(pa.struct([("text", pa.string()), ("weight", pa.float64())]))
        table = table.append_column("captions", pa.array(pairs, kind))
    provenance = getattr(source, "provenance", None)
    if provenance is not None:
        for name in provenance.column_names:
            table = table.append_column(name, provenance[name].take(pa.array(rows)))
    buffer = BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
