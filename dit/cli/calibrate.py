"""Calibrates a concept that a policy refuses: `python -m dit.cli.calibrate concept='no star' pictures=FOLDER`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from dit.cli.front import front_door

if TYPE_CHECKING:
    from torch import Tensor

    from dit.metrics.extractors import OpenClip


def texts_of(cfg: DictConfig) -> list[str]:
    """Returns the texts of the concept: of the config, of a file, or the concept without a leading "no"."""
    from dit.files import read_lines

    if cfg.texts is None:
        return [cfg.concept.removeprefix("no ").strip()]
    if isinstance(cfg.texts, str):
        texts = [line.strip() for line in read_lines(cfg.texts) if line.strip()]
    else:
        texts = [str(text) for text in cfg.texts]
    if not texts:
        raise ValueError(f"texts={cfg.texts}: there is no text to compare pictures with; give at least one")
    return texts


def scores_of(folder: str, extractor: OpenClip, texts: Tensor, cfg: DictConfig) -> Tensor:
    """Returns the scores of the pictures of a folder, (N,) float64. texts: their unit vectors."""
    import numpy as np
    import torch

    from dit.data.picture_folder import PictureFolder
    from dit.generation.concepts import similarity
    from dit.plain_values import sizes

    source = PictureFolder(folder, None if cfg.size is None else sizes(cfg.size, "size")[0])
    places = np.arange(len(source))
    batches = [places[first : first + cfg.batch_size] for first in range(0, len(source), cfg.batch_size)]
    return torch.cat([similarity(extractor, torch.from_numpy(source.images(rows)), texts) for rows in batches])


def calibrate(cfg: DictConfig) -> Path:
    """Adds the concept with its threshold to the file `out`, prints its false-alarm rate and, of `examples`, the share
    that is refused, and prints the file as the last line."""
    # Slow imports follow after the command line is checked.
    from hydra.utils import instantiate

    from dit.cli.quiet import quiet
    from dit.devices import device_of
    from dit.evaluation.statistics import wilson
    from dit.files import write_atomic
    from dit.generation.concepts import Concept, as_json, encoded, read_concepts
    from dit.generation.concepts import calibrate as calibrated

    quiet()
    texts, out = texts_of(cfg), Path(cfg.out).absolute()
    extractor = instantiate(cfg.extractor).to(device_of(cfg.device))
    others, vectors = read_concepts(out, extractor) if out.exists() else [], encoded(extractor, texts)
    found = calibrated(scores_of(cfg.pictures, extractor, vectors, cfg), cfg.rate)
    low, high = found.interval
    print(
        f"{cfg.concept}: a cosine above {found.threshold:.4f} is refused; of pictures without it "
        f"{found.false_alarm_rate:.2%} [{low:.2%}, {high:.2%}] (95 %, {found.pictures} pictures)"
    )
    if cfg.examples is not None:
        shown = scores_of(cfg.examples, extractor, vectors, cfg) > found.threshold
        low, high = wilson(int(shown.sum()), len(shown))
        print(f"of {len(shown)} pictures with it {shown.double().mean():.2%} [{low:.2%}, {high:.2%}] are refused")
    concepts = [concept for concept in others if concept.name != cfg.concept]
    write_atomic(out, as_json([*concepts, Concept(cfg.concept, tuple(texts), found)], extractor))
    print(out, flush=True)
    return out


if __name__ == "__main__":
    front_door("calibrate", "dit.cli.calibrate:calibrate")
