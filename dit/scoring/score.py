"""Scores images with one call, for use from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from dit.components import component
from dit.metrics.base import ImageMetric
from dit.sample_grid import Samples
from dit.scoring.fitted_extractors import fit_extractors
from dit.scoring.references import update_references
from dit.scoring.samples import SampleBatch, Scores, score_samples
from dit.types import CaptionedImages, to_pixels


def score(
    samples: Samples | Tensor,
    metrics: str | Sequence[str] | Mapping[str, ImageMetric],
    prompts: Sequence[str] | None = None,
    real: CaptionedImages | None = None,
    train: CaptionedImages | None = None,
    references: int = 1024,
    cache_dir: str | Path = "cache",
    device: str = "cpu",
) -> Scores:
    """Scores images with any metrics. `.scores` of the result are the numbers by column.

    samples: what `Run.sample` returns, or (N, 3, H, W), float in [-1, 1] or uint8. metrics: names of conf/metric, or
    metrics by name. prompts: the N texts, by default those of the samples. real, train: pictures for distances and the
    search for copies; of `real`, `references` are chosen at random. Their features are cached in cache_dir. Raises
    ValueError if a metric lacks an input.

    The numbers equal those of evaluate.py, but have no card: to compare models, use evaluate.py.
    """
    given = samples.images if isinstance(samples, Samples) else samples
    images = given if not given.is_floating_point() else to_pixels(given.detach())
    texts = prompts if prompts is not None else samples.prompts if isinstance(samples, Samples) else ()
    texts = list(texts) or [""] * len(images)
    if isinstance(metrics, Mapping):
        chosen = dict(metrics)
    else:
        names = [metrics] if isinstance(metrics, str) else metrics
        chosen = {name: metric for group in names for name, metric in component("metric", group).items()}
    chosen = {name: metric.to(device) for name, metric in chosen.items()}
    fit_extractors(chosen.values(), real if train is None else train, Path(cache_dir))
    splits = {"val": real, "train": train}
    sources = {split: source for split, source in splits.items() if source is not None}
    counts = {split: min(references, len(s)) if split == "val" else len(s) for split, s in sources.items()}
    update_references(chosen.values(), sources, counts, Path(cache_dir))
    return score_samples(chosen, [SampleBatch(images, texts, range(len(images)))])
