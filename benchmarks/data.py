"""Reading latents and text in random order: `python benchmarks/data.py`.

Samples of 4 x 32 x 32 latents and 77 x 768 text tokens, float16 random numbers, are written as shards of dit, as
WebDataset tars and as chunks of litdata, and read in shuffled batches of float32 tensors by one process on one core,
without workers. Each reader runs in its own process. The table has samples per second of the clock
and of the processor in the second of two rounds, and the largest anonymous memory that reading added (what cannot be
dropped, unlike pages of mapped files), for two sizes of data.
litdata is no dependency: after `pip install --target DIR litdata`, run with PYTHONPATH=DIR.

`--rows N` measures instead the memory of what is known of N pictures of a source, each with a caption of ten words, and
with and without a licence, an author and a URL: a source keeps its rows in memory, and a prepared store does not.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from dit.data.latent_dataset import LatentDataset
from dit.data.order import KeyedBatches
from dit.data.shard_encoding import Encoding
from dit.data.shard_writer import Limits, write_store
from dit.encoders.autoencoder import Identity
from dit.types import Condition

LATENT, TEXT = (4, 32, 32), (77, 768)
BATCH = 256


def sample(row: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the latent and the text of a sample, float16."""
    draw = np.random.default_rng(row)
    latent, text = (draw.standard_normal(shape, np.float32).astype(np.float16) for shape in (LATENT, TEXT))
    return latent, text


class Source:
    """Samples instead of pictures; the caption is the number of the sample."""

    def __init__(self, count: int) -> None:
        self.captions = [f"{row:09d}" for row in range(count)]
        self.fingerprint = f"samples {count}"

    def __len__(self) -> int:
        return len(self.captions)

    def images(self, index: np.ndarray) -> np.ndarray:
        pixels = np.zeros((len(index), 3, 32, 32), np.uint8)
        pixels[:, 0, 0, :4] = np.asarray(index, dtype=">u4").view(np.uint8).reshape(-1, 4)  # the row, in four pixels
        return pixels


class Latents(Identity):
    """An autoencoder that returns the latents of the rows that the pictures hold."""

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        return LATENT

    def encode(self, images: Tensor) -> Tensor:
        digits = ((images[:, 0, 0, :4] + 1) * 127.5).round().long()
        rows = (digits * torch.tensor([2**24, 2**16, 2**8, 1])).sum(1)
        return torch.from_numpy(np.stack([sample(int(row))[0] for row in rows])).float()


class Text:
    """A text encoder that returns the text of the row that a caption names."""

    length, sizes, fingerprint = TEXT[0], {"token_dim": TEXT[1]}, "text"

    def fit(self, prompts: Iterable[str]) -> list[str]:
        return list(prompts)

    def encode(self, prompts: Iterable[str]) -> Condition:
        tokens = torch.from_numpy(np.stack([sample(int(prompt))[1] for prompt in prompts])).float()
        return Condition(tokens=tokens, mask=torch.ones(tokens.shape[:2], dtype=torch.bool))

    def null(self) -> Condition:
        return self.encode(["0"])

    def to(self, device: torch.device | str) -> Text:
        return self


# ---------------------------------------------------------------- writers and readers: folder -> endless (x0, tokens)


def write_dit(folder: Path, count: int) -> None:
    write_store(folder, Source(count), Encoding(Latents(), Text()), Limits(shard_mb=256))


def read_dit(folder: Path) -> Iterator[tuple[Tensor, Tensor]]:
    data = LatentDataset(folder, TEXT[0])
    for visits in KeyedBatches(len(data), BATCH, seed=0):
        batch = data[visits]
        assert batch.condition.tokens is not None
        yield batch.x0, batch.condition.tokens


def write_webdataset(folder: Path, count: int) -> None:
    import webdataset

    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "%05d.tar"), maxcount=2048, verbose=0) as writer:
        for row in range(count):
            latent, text = sample(row)
            writer.write({"__key__": f"{row:09d}", "latent.npy": latent, "text.npy": text})


def read_webdataset(folder: Path) -> Iterator[tuple[Tensor, Tensor]]:
    import webdataset

    tars = sorted(map(str, folder.glob("*.tar")))
    data = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=0).shuffle(1000).decode()
    for latent, text in data.to_tuple("latent.npy", "text.npy").batched(BATCH, partial=False).repeat():
        yield torch.as_tensor(np.asarray(latent)).float(), torch.as_tensor(np.asarray(text)).float()


def litdata_item(row: int) -> dict[str, Tensor]:
    latent, text = map(torch.from_numpy, sample(row))
    return {"latent": latent, "text": text}


def write_litdata(folder: Path, count: int) -> None:
    import litdata

    litdata.optimize(litdata_item, list(range(count)), str(folder), chunk_bytes="256MB", num_workers=1, verbose=False)


def read_litdata(folder: Path) -> Iterator[tuple[Tensor, Tensor]]:
    import litdata

    data = litdata.StreamingDataset(str(folder), shuffle=True, seed=0, drop_last=True)
    while True:
        for batch in litdata.StreamingDataLoader(data, batch_size=BATCH, num_workers=0):
            yield batch["latent"].float(), batch["text"].float()


ENGINES: dict[str, tuple[Callable[[Path, int], None], Callable[[Path], Iterator[tuple[Tensor, Tensor]]]]] = {
    "dit": (write_dit, read_dit),
    "webdataset": (write_webdataset, read_webdataset),
    "litdata": (write_litdata, read_litdata),
}


# ---------------------------------------------------------------- measuring


def anonymous() -> float:
    """Returns the anonymous memory of this process in MB."""
    [line] = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1000


def measure(engine: str, folder: Path, count: int) -> dict[str, Any]:
    """Reads `count` samples twice on one core; returns samples per second of the second round, by the clock and by
    the processor's time, and the added memory in MB."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    batches, before, most, rates = ENGINES[engine][1](folder), anonymous(), 0.0, [0.0]
    for _ in range(2):
        start, spent = time.perf_counter(), time.process_time()
        for x0, tokens in islice(batches, count // BATCH):
            assert (x0.shape, tokens.shape) == ((BATCH, *LATENT), (BATCH, *TEXT))
            assert x0.dtype == tokens.dtype == torch.float32
            most = max(most, anonymous())
        read = count // BATCH * BATCH
        rates = [read / (time.perf_counter() - start), read / (time.process_time() - spent)]
    return {"rates": rates, "memory": most - before}


def write_rows(file: Path, count: int, described: bool) -> None:
    from dit.data.rows import Row, save_rows
    from dit.picture_files import PictureFile

    rows = []
    for number in range(count):
        url = f"https://example.org/pictures/{number:09}.jpg"
        rows.append(
            Row(
                name=f"folder_{number % 1000:03}/picture_{number:09}.jpg",
                place=(100_000 + number, 10**18 + number),
                captions=((f"a photo of picture number {number} beside {number % 977} other things", 1.0),),
                label=f"folder_{number % 1000:03}",
                metadata={"licence": "cc0", "author": f"author {number % 5000}", "url": url} if described else {},
                picture=PictureFile(number.to_bytes(32, "big"), (640, 480), False, False),
            )
        )
    save_rows(file, "", rows)


def memory_of_rows(file: Path) -> float:
    """Returns the memory in MB that the rows of an index need."""
    from dit.data.rows import load_rows

    before = anonymous()
    found = load_rows(file, "")
    gc.collect()
    assert found is not None
    return anonymous() - before


def measure_rows(count: int) -> None:
    """Prints the memory of `count` rows that are read from the index of a source, in MB per million."""
    for described in (False, True):
        with tempfile.TemporaryDirectory() as temporary, get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            file = Path(temporary) / "rows.parquet"
            pool.apply(write_rows, (file, count, described))
            memory = pool.apply(memory_of_rows, (file,))  # in a process of its own
        what = "a caption, licence, author and URL" if described else "a caption"
        print(f"rows with {what}: {memory / count * 1e6:,.0f} MB per million", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[2048, 8192], help="samples, 126 kB each")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # the process of a reader
    parser.add_argument("--rows", type=int, help="measure the memory of this many rows of a source")
    options = parser.parse_args()
    if options.rows:
        measure_rows(options.rows)
        return
    if options.one:
        engine, folder, count = options.one
        print(json.dumps(measure(engine, Path(folder), int(count))))
        return
    engines = [engine for engine in options.engines if engine == "dit" or importlib.util.find_spec(engine)]
    for missing in set(options.engines) - set(engines):
        print(f"{missing} is not installed and left out: pip install --target DIR {missing}, then PYTHONPATH=DIR")
    print("| engine | samples | 1/s of the clock | 1/s of the processor | memory, MB |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for count in options.counts:
            for engine in engines:
                folder = Path(temporary) / f"{engine}_{count}"
                ENGINES[engine][0](folder, count)
                words = [sys.executable, __file__, "--one", engine, str(folder), str(count)]
                output = subprocess.run(words, capture_output=True, text=True, check=True).stdout
                found = json.loads(output.splitlines()[-1])
                clock, processor = found["rates"]
                print(f"| {engine} | {count} | {clock:,.0f} | {processor:,.0f} | {found['memory']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
