"""Reference pictures of metrics: their selection, their fields in a protocol, and the cache of the metrics' reference
states."""

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
from dit.data.prepared import Prepared
from dit.data.source import Images
from dit.distributed import all_reduce_sum, raise_on_all_ranks, rank_and_world_size
from dit.files import replacing
from dit.metrics.base import ImageMetric
from dit.picture_files import Rules, size_text
from dit.scoring.prompts import digest_of_prompts
from dit.types import CaptionedImages

# The code that determines the scores of given pictures. Cache files of other code are not used.
SCORING_CODE = (
    *("data", "diffusion/noise", "distributed", "hub", "metrics", "picture_files", "scoring", "tensors", "types"),
)
CHOSEN = "random subset, key 0"  # in a card: pictures or prompts chosen by `dit.data.order.subset`
AS_GIVEN = {"resize": "none, as the source gives them", "crop": "none"}  # in a card: pictures without files


def subset_indices(total: int, count: int) -> np.ndarray:
    """Returns (min(count, total),) int64: the indices of a fixed random subset of `total` pictures, ascending. The
    subset of a larger count contains that of a smaller one."""
    return np.sort(subset(total, count))


def reference_count(total: int, n: int, given: int | None) -> int:
    """Returns how many of `total` real pictures are references of n generated ones: `given`, at most all; for None,
    1,024, or fewer so that n others, at most half of all, are left for a floor."""
    if given is not None:
        return min(given, total)
    return min(1024, max(total - n, -(-total // 2)))


def size_of(source: CaptionedImages) -> tuple[int, int]:
    """Returns the (width, height) of a source's pictures, which have one size."""
    height, width = source.store.sizes[0] if isinstance(source, Prepared) else source.images(np.array([0])).shape[-2:]
    return width, height


def rules_of(source: CaptionedImages) -> dict[str, str]:
    """Returns how the pictures of a source are resized, cropped and mirrored, in words for a card."""
    if isinstance(source, Images) and source.size is not None:
        words = source.rules.in_words
        return {**words, "resize": f"to {size_text(source.size)}, {words['resize']}", "flip": "none"}
    return {**AS_GIVEN, "flip": "none"}


def rules_of_training(data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns how the training pictures of a run were resized, cropped and mirrored, in words for a card. data: the
    group of its config."""
    module = data["module"]
    size, flip = size_text(data["size"]), "each use mirrored with probability 1/2" if data.get("flip") else "none"
    if "side_multiple" in module:
        multiple = module["side_multiple"]
        size = f"the nearest in aspect ratio of diffusers' sizes of about {size}, with sides that {multiple} divides"
    sources: dict[str, Any] = {name: node.get("rules", {}) for name, node in data.get("sources", {}).items()}
    if "resize" in data:
        sources = {"": {"resize": data["resize"], "crop": data["crop"]}}
    if not sources and module.get("train", {}).get("_target_") == "dit.data.prepared.Prepared":
        made = "by dit-prepare, as prepare.yaml beside the shards says"
        return {"resize": made, "crop": made, "flip": flip}
    if not sources:
        return {**AS_GIVEN, "flip": flip}
    rules = {name: Rules(**own).in_words for name, own in sources.items()}
    words = {name: {"resize": f"to {size}, {own['resize']}", "crop": own["crop"]} for name, own in rules.items()}
    return words.get("", words) | {"flip": flip}


def protocol_fields(
    prompts: Sequence[str],
    seed: int,
    size: tuple[int, int],
    real: Mapping[str, CaptionedImages],
    counts: Mapping[str, int],
) -> dict[str, Any]:
    """Returns what scores depend on besides the model, the recipe and the metrics, as plain values. size: (width,
    height) of the pictures. real: the reference pictures by split; `counts` of them are chosen by `subset_indices`."""
    reference = {
        split: {
            "pictures": source.fingerprint,
            "count": min(counts[split], len(source)),
            "chosen": CHOSEN if counts[split] < len(source) else "all",
            **rules_of(source),
        }
        for split, source in real.items()
    }
    return {
        "n": len(prompts),
        "seed": seed,
        "size": list(size),
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
    """Updates every metric with `counts` real pictures of its reference split, chosen by
    `subset_indices`; each network extracts each picture once. The reference states are cached in `cache_dir`; the file
    name depends on the pictures, their number, the network and the code. Raises ValueError if a split is missing."""
    waiting: dict[str, dict[str, list[ImageMetric]]] = {}
    for metric in metrics:
        if metric.reference_split is not None and metric.reference_key is not None:
            waiting.setdefault(metric.reference_split, {}).setdefault(metric.reference_key, []).append(metric)
    for split, by_key in waiting.items():
        if split not in real:
            names = [name for group in by_key.values() for metric in group for name in metric.headlines]
            if split == "base":
                raise ValueError(f"{', '.join(names)}: compare two models, which only evaluate.py does; leave them out")
            where = {"val": "real"}.get(split, split)
            raise ValueError(f"{', '.join(names)}: need real pictures, and none are given; say {where}=FOLDER or .npz")
        files = {
            key: _reference_file(cache_dir, real[split], counts[split], key, group[0]) for key, group in by_key.items()
        }
        lacking = all_reduce_sum(*(not files[key].is_file() for key in by_key))  # if one rank lacks it, all compute it
        missing = {key: group[0] for (key, group), lack in zip(by_key.items(), lacking, strict=True) if lack}
        _update_real(real[split], counts[split], list(missing.values()), batch_size)
        for key, group in by_key.items():
            if key in missing:
                group[0].sync_reference()
                if rank_and_world_size()[0] == 0:
                    with replacing(files[key]) as growing:
                        save_file({n: v.cpu().contiguous() for n, v in group[0].reference_state().items()}, growing)
            state = group[0].reference_state() if key in missing else _kept_reference(files[key])
            for metric in group:
                metric.load_reference(state)


def _reference_file(cache_dir: Path, source: CaptionedImages, count: int, key: str, metric: ImageMetric) -> Path:
    code = code_digest(*SCORING_CODE), foreign_code(source, metric, getattr(metric, "extractor", metric))
    parts = (CHOSEN, source.fingerprint, min(count, len(source)), key, code)
    return cache_dir / f"reference_{hashlib.sha256(repr(parts).encode()).hexdigest()[:20]}.safetensors"


def _kept_reference(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}; delete it to have it computed again") from None


def _update_real(source: CaptionedImages, count: int, metrics: Sequence[ImageMetric], batch_size: int) -> None:
    """Updates the metrics with this rank's block of the pictures."""
    if not metrics:
        return
    (rank, world), rows = rank_and_world_size(), subset_indices(len(source), count)
    mine = rows[rank * len(rows) // world : (rank + 1) * len(rows) // world]
    with raise_on_all_ranks():
        for first in tqdm(range(0, len(mine), batch_size), desc="real pictures", unit="batch", leave=False):
            images = torch.from_numpy(source.images(mine[first : first + batch_size]))
            for metric in metrics:
                metric.update(images, real=True)
