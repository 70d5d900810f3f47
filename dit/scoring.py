"""Pictures made and judged: the one way to score, offline and while training, on one process or many."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from dit.code_digest import code_digest, foreign_code
from dit.data.order import subset
from dit.distributed import all_gather, all_reduce_sum, raise_on_all_ranks, rank_and_world_size, rank_batches
from dit.files import replacing
from dit.metrics.base import ImageMetric, MetricResult
from dit.pipeline import Pipeline, Recipe
from dit.types import CaptionedImages, Condition, to_pixels

# The code that judges pictures: what other code has found is not used again.
SCORING_CODE = ("data", "diffusion/noise", "distributed", "hub", "metrics", "picture_files", "scoring", "types")
CHOSEN = "random subset, key 0"  # how a card says that pictures or prompts are those of `dit.data.order.subset`
Done = Callable[[int], object]  # is told, as pictures are made, how many more there are


@dataclass(frozen=True)
class SampleBatch:
    """Some of the pictures to judge: (B, 3, H, W) uint8, their prompts, their places among all, and what they cost:
    network evaluations for each, and seconds in all. broken: how many are not finite, and so are no pictures."""

    images: Tensor
    prompts: Sequence[str]
    index: Sequence[int]
    nfe: float = 0.0
    seconds: float = 0.0
    broken: int = 0


def to_uint8(images: Tensor) -> tuple[Tensor, int]:
    """(B, 3, H, W) in [-1, 1] -> uint8, and how many of them are not finite, and so are no pictures."""
    return to_pixels(images.nan_to_num()), int((~images.isfinite().flatten(1).all(1)).sum())


class EncodedPrompts:
    """Prompts as conditions: `texts[rows]` is what a network is told of the prompts in these places. Each distinct
    prompt is encoded once and kept, unless all of them together are too large for that."""

    LARGE = 2**31  # bytes

    def __init__(self, pipeline: Pipeline, prompts: Sequence[str], batch_size: int = 64) -> None:
        self.pipeline, self.prompts = pipeline, prompts
        distinct = list(dict.fromkeys(prompts))
        place = {prompt: row for row, prompt in enumerate(distinct)}
        self.place = torch.tensor([place[prompt] for prompt in prompts])
        first = pipeline.encode(distinct[:batch_size]).to("cpu")
        self.kept: Condition | None = None
        if first.nbytes / len(first) * len(distinct) <= self.LARGE:
            rest = (distinct[i : i + batch_size] for i in range(batch_size, len(distinct), batch_size))
            self.kept = Condition.cat([first, *(pipeline.encode(part).to("cpu") for part in rest)])

    def __getitem__(self, rows: Tensor) -> Condition:
        if self.kept is not None:
            return self.kept[self.place[rows]]
        return self.pipeline.encode([self.prompts[int(row)] for row in rows])


def sample_prompts(
    pipeline: Pipeline,
    prompts: Sequence[str],
    condition: Condition | EncodedPrompts,
    seed: int,
    recipe: Recipe,
    batch_size: int,
    done: Done = lambda images: None,
) -> Iterator[SampleBatch]:
    """This process's share of a picture for every prompt, whose encoded condition is given beside: picture i comes from
    noise seed + i, whichever process makes it and in whichever batch."""
    for rows in rank_batches(len(prompts), batch_size):
        start = time.perf_counter()
        samples = pipeline(condition[torch.tensor(rows)], [seed + i for i in rows], recipe, batch_size, done)
        seconds = time.perf_counter() - start
        images, broken = to_uint8(samples.images)
        yield SampleBatch(images, [prompts[i] for i in rows], rows, samples.nfe, seconds, broken)


@dataclass(frozen=True)
class Scores:
    """results: by the metrics' names. shown: the first pictures, (S, 3, H, W) uint8. Over all processes: nfe of a
    picture, n pictures, and the seconds that making them took, added over processes. lost: the metrics that cannot
    judge these pictures, and why."""

    results: Mapping[str, MetricResult]
    shown: Tensor
    n: int
    nfe: float
    seconds: float
    lost: Mapping[str, str]

    @property
    def scores(self) -> dict[str, float]:
        """By their columns."""
        return {column: value for found in self.results.values() for column, value in found.scores.items()}

    @property
    def each(self) -> dict[str, Tensor]:
        """Every picture's part in them, by their columns."""
        return {column: part for found in self.results.values() for column, part in found.each.items()}


def score_samples(metrics: Mapping[str, ImageMetric], pictures: Iterable[SampleBatch], shown: int = 0) -> Scores:
    """Every metric's verdict, in one pass. Each process gives its share of the pictures, and all get the same answer.

    A metric that cannot judge them is told of and left out. Raises ValueError, on every process, where pictures are not
    finite, where one process cannot make its own, or where no metric is left.
    """
    for metric in metrics.values():
        metric.reset()
    first: dict[int, Tensor] = {}
    n, evaluations, seconds, broken = 0, 0.0, 0.0, 0
    lost: dict[str, str] = {}  # metrics that cannot judge these pictures, and why
    with raise_on_all_ranks():
        for made in pictures:
            for name, metric in metrics.items():
                try:
                    metric.update(made.images, made.prompts, made.index)
                except ValueError as error:
                    lost.setdefault(name, str(error))
            first |= {i: made.images[row].cpu() for row, i in enumerate(made.index) if i < shown}
            n, evaluations = n + len(made.index), evaluations + made.nfe * len(made.index)
            seconds, broken = seconds + made.seconds, broken + made.broken
    all_n, evaluations, seconds, all_broken = all_reduce_sum(n, evaluations, seconds, broken)
    if all_broken:
        raise ValueError(f"{all_broken:g} of {all_n:g} pictures are not finite (NaN or infinite): there is no score")
    first = {i: image for share in all_gather(first) for i, image in share.items()}
    strip = torch.stack([first[i] for i in sorted(first)]) if first else torch.empty(0, 3, 1, 1, dtype=torch.uint8)
    lost = {name: why for share in all_gather(lost) for name, why in share.items()}
    results: dict[str, MetricResult] = {}
    for name in [name for name in metrics if name not in lost]:  # each in its turn, on every process
        try:
            results[name] = metrics[name].result()
        except ValueError as error:  # the same on every process
            lost[name] = str(error)
    if lost and not results:
        raise ValueError("; ".join(dict.fromkeys(lost.values())))
    if lost and rank_and_world_size()[0] == 0:
        print(f"warning: without {', '.join(sorted(lost))}: {'; '.join(dict.fromkeys(lost.values()))}", file=sys.stderr)
    return Scores(results, strip, int(all_n), evaluations / max(all_n, 1), seconds, lost)


def held_out_prompts(captions: Sequence[str], n: int) -> list[str]:
    """n of the held-out captions in random order, always the same; a larger n begins with those of a smaller one.
    Repeated where there are fewer."""
    order = subset(len(captions), n)
    return [captions[order[i % len(order)]] for i in range(n)]


def subset_indices(total: int, count: int) -> np.ndarray:
    """(min(count, total),) int64: the places of a random part of `total` pictures, always the same, in rising order. A
    larger count has those of a smaller one among its own."""
    return np.sort(subset(total, count))


def digest_of_prompts(prompts: Sequence[str]) -> str:
    """What a protocol says of the prompts."""
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16]


def protocol_fields(
    prompts: Sequence[str], seed: int, real: Mapping[str, CaptionedImages], counts: Mapping[str, int]
) -> dict[str, Any]:
    """What scores depend on besides the model, the recipe and the metrics, as plain values. real: what they are
    measured against, so many of each as `counts` says, chosen by `subset_indices`."""
    reference = {
        split: {
            "pictures": source.fingerprint,
            "count": min(counts[split], len(source)),
            "chosen": CHOSEN if counts[split] < len(source) else "all",
        }
        for split, source in real.items()
    }
    return {
        "n": len(prompts),
        "seed": seed,
        "prompts_sha256": digest_of_prompts(prompts),
        "reference": reference,
    }


def update_references(
    metrics: Iterable[ImageMetric],
    real: Mapping[str, CaptionedImages],
    counts: Mapping[str, int],
    cache_dir: Path,
    batch_size: int = 128,
) -> None:
    """Shows every metric `counts` of the real pictures that it wants ("val" or "train"), chosen by `subset_indices`,
    each picture to each network once. What is learnt of them is kept in `cache_dir`, named by the content of the
    pictures, their number, the network and the code that looks at them, so that it can never answer for others."""
    waiting: dict[str, dict[str, list[ImageMetric]]] = {}
    for metric in metrics:
        if metric.reference_split is not None and metric.reference_key is not None:
            waiting.setdefault(metric.reference_split, {}).setdefault(metric.reference_key, []).append(metric)
    for split, asked in waiting.items():
        if split not in real:
            names = [name for alike in asked.values() for metric in alike for name in metric.headlines]
            where = {"val": "real", "train": "train"}[split]
            raise ValueError(
                f"{', '.join(names)}: measured against real pictures, and none are given; say {where}=FOLDER or .npz"
            )
        files = {
            key: _reference_file(cache_dir, real[split], counts[split], key, alike[0]) for key, alike in asked.items()
        }
        lacking = all_reduce_sum(*(not files[key].is_file() for key in asked))  # what one process lacks, all look at
        missing = {key: alike[0] for (key, alike), lack in zip(asked.items(), lacking, strict=True) if lack}
        _update_real(real[split], counts[split], list(missing.values()), batch_size)
        for key, alike in asked.items():
            if key in missing:
                alike[0].sync_reference()
                if rank_and_world_size()[0] == 0:
                    with replacing(files[key]) as growing:
                        save_file({n: v.cpu().contiguous() for n, v in alike[0].reference_state().items()}, growing)
            state = alike[0].reference_state() if key in missing else _kept_reference(files[key])
            for metric in alike:
                metric.load_reference(state)


def _reference_file(cache_dir: Path, source: CaptionedImages, count: int, key: str, metric: ImageMetric) -> Path:
    code = code_digest(*SCORING_CODE), foreign_code(source, metric, getattr(metric, "extractor", metric))
    parts = (CHOSEN, source.fingerprint, min(count, len(source)), key, code)
    return cache_dir / f"reference_{hashlib.sha256(repr(parts).encode()).hexdigest()[:20]}.safetensors"


def _kept_reference(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is broken: {error}; delete it, and it will be made again") from None


def _update_real(source: CaptionedImages, count: int, metrics: Sequence[ImageMetric], batch_size: int) -> None:
    """Shows this process's block of the pictures to the metrics."""
    if not metrics:
        return
    (rank, world), rows = rank_and_world_size(), subset_indices(len(source), count)
    mine = rows[rank * len(rows) // world : (rank + 1) * len(rows) // world]
    with raise_on_all_ranks():
        for first in tqdm(range(0, len(mine), batch_size), desc="real pictures", unit="batch", leave=False):
            images = torch.from_numpy(source.images(mine[first : first + batch_size]))
            for metric in metrics:
                metric.update(images, real=True)
