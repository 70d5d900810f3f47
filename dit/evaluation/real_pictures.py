"""The real pictures that an evaluation needs at one size: references of metrics, pictures of floors, and captions."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hydra.utils import instantiate
from omegaconf import DictConfig

from dit.evaluation.sources import at_size, reference_at, squared
from dit.evaluation.subject import Subject
from dit.metrics.base import ImageMetric
from dit.metrics.statistics import Statistics
from dit.picture_files import size_text
from dit.scoring.references import reference_count, size_of
from dit.types import CaptionedImages

DEFAULT_N = 100  # pictures in each cell


@dataclass(frozen=True)
class Reference:
    """What pictures of one size are scored against.

    real: real pictures by split: "val", "train", "subject". counts: how many of each are references. statistics: in
    place of the held-out pictures. captions: of the held-out pictures, also if these have another size. notes: what is
    missing, one sentence each.
    """

    real: Mapping[str, CaptionedImages]
    counts: Mapping[str, int]
    statistics: Statistics | None
    captions: Sequence[str]
    notes: Sequence[str]


def real_pictures(
    cfg: DictConfig, subject: Subject, metrics: Mapping[str, ImageMetric], size: tuple[int, int]
) -> Reference:
    """Returns the real pictures for a size (width, height): held-out ones, for metrics and floors, and those of
    training and of the subject of a fine-tuning if a metric needs them. They are cropped to the size if the config
    gives one.

    Raises ValueError if a metric needs pictures that cannot be cropped.
    """
    found: dict[str, CaptionedImages] = {}
    statistics: Statistics | None = None
    captions: Sequence[str] = ()
    notes: list[str] = []
    wanted = None if cfg.size is None else size
    for split, key in (("val", "real"), ("train", "train"), ("subject", "subject")):
        needing = [name for name, metric in metrics.items() if metric.reference_split == split]
        if split != "val" and not needing:
            continue
        source = source_of(cfg, subject, split, cfg[key], wanted)
        if isinstance(source, Statistics):
            statistics = source
            continue
        if split == "val" and source is not None:
            captions = source.captions
        fitting = source if source is None or wanted is None else at_size(source, wanted)
        if fitting is not None:
            found[split] = fitting
        elif source is not None:
            notes.append(no_pictures(source, size, needing, key))
    theirs = subject.captions()
    n = cfg.n or (DEFAULT_N if theirs is None else len(theirs))
    limits = {"train": cfg.train_references or sys.maxsize, "subject": sys.maxsize}
    counts = {split: min(limits.get(split, sys.maxsize), len(source)) for split, source in found.items()}
    if "val" in found:
        counts["val"] = reference_count(len(found["val"]), n, cfg.references)
    return Reference(found, counts, statistics, captions, notes)


def source_of(
    cfg: DictConfig, subject: Subject, split: str, own: DictConfig | str | None, size: tuple[int, int] | None
) -> CaptionedImages | Statistics | None:
    """Returns the pictures that the config names for a split, or those of the subject's data."""
    if isinstance(own, DictConfig):
        return instantiate(own)
    if own is None:
        return subject.real(split)
    return reference_at(own, None if size is None else squared(size), cfg.statistics and split == "val", cfg.cache_dir)


def fitting_pictures(cfg: DictConfig, subject: Subject) -> CaptionedImages | None:
    """Returns the pictures that extractors are fitted on: those of training, or else the held-out ones, if any."""
    for split, key in (("train", "train"), ("val", "real")):
        source = source_of(cfg, subject, split, cfg[key], None)
        if source is not None and not isinstance(source, Statistics):
            return source
    return None


def no_pictures(source: CaptionedImages, size: tuple[int, int], needing: Sequence[str], key: str) -> str:
    """Returns a note on real pictures that have another size. Raises ValueError if metrics need them."""
    fault = f"size={size_text(size)}: the real pictures are {size_text(size_of(source))} and cannot be cropped"
    if needing:
        raise ValueError(
            f"{fault}, and {', '.join(needing)} would compare with them; give {key}=FOLDER of picture files, or choose "
            f"other metrics"
        )
    return f"{fault}: there are no floors"
