"""The real pictures that metrics measure against: which ones, how a protocol names them, and the cache of what the
metrics keep of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
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
from dit.distributed import all_reduce_sum, raise_on_all_ranks, rank_and_world_size
from dit.files import replacing
from dit.metrics.base import ImageMetric
from dit.scoring.prompts import digest_of_prompts
from dit.types import CaptionedImages

# The code that decides scores of given pictures. What other code has kept is not used again.
SCORING_CODE = (
    *("data", "diffusion/noise", "distributed", "hub", "metrics", "picture_files", "scoring", "tensors", "types"),
)
CHOSEN = "random subset, key 0"  # how a card says that pictures or prompts are those of `dit.data.order.subset`


def subset_indices(total: int, count: int) -> np.ndarray:
    """(min(count, total),) int64: the places of a random part of `total` pictures, always the same, in rising order. A
    larger count has those of a smaller one among its own."""
    return np.sort(subset(total, count))


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
