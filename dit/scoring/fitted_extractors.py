"""Fits the extractors that learn from the pictures at hand, before metrics use them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dit.distributed import barrier, raise_on_all_ranks, rank_and_world_size
from dit.metrics.base import ImageMetric
from dit.metrics.extractors import Extractor
from dit.types import CaptionedImages


def learning_extractors(metrics: Iterable[ImageMetric]) -> list[Extractor]:
    """Returns the extractors that must be fitted, each once."""
    found = [getattr(metric, "extractor", None) for metric in metrics]
    return list(dict.fromkeys(e for e in found if isinstance(e, Extractor) and e.is_fitted_on_data))


def fit_extractors(metrics: Iterable[ImageMetric], pictures: CaptionedImages | None, cache_dir: Path) -> None:
    """Fits them on real pictures, on rank 0; the other ranks read its file. Raises ValueError if there are none."""
    is_first = rank_and_world_size()[0] == 0
    for extractor in learning_extractors(metrics):
        if pictures is None:
            raise ValueError(
                f"the extractor {type(extractor).__name__} is fitted on real pictures, and none are given; give some "
                f"as train or real, or choose an extractor that is not fitted, such as pixels"
            )
        with raise_on_all_ranks():
            if is_first:
                extractor.fit(pictures, cache_dir)
        barrier()
        if not is_first:
            extractor.fit(pictures, cache_dir)
