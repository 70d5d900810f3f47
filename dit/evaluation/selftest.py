"""The evaluator tests itself before it reports: a broken one must not be believed.

Distances must be about 0 between pictures and themselves, and grow with noise and with blur. Agreement with prompts
must fall when the prompts are shuffled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dit.evaluation.sweep import digest_of
from dit.files import write_atomic
from dit.metrics.base import ImageMetric
from dit.scoring import processes
from dit.types import CaptionedImages

COUNT = 64  # real pictures that it is made with
NEAR = 0.05  # of the distance of the noisiest pictures: what still counts as none


def noisy(images: Tensor, level: float) -> Tensor:
    """(N, 3, H, W) uint8, with noise of `level` grey values in them; always the same."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + level * noise).round().clamp(0, 255).to(torch.uint8)


def blurred(images: Tensor, share: float) -> Tensor:
    """(N, 3, H, W) uint8, scaled down to a share of their side and up again."""
    small = F.interpolate(images.float(), scale_factor=share, mode="bilinear", antialias=True)
    wide = F.interpolate(small, images.shape[-2:], mode="bilinear")
    return wide.round().clamp(0, 255).to(torch.uint8)


def faults_of(metric: ImageMetric, images: Tensor, prompts: Sequence[str]) -> list[str]:
    """What a metric gets wrong about (N, 3, H, W) uint8 real pictures and their prompts; nothing where it is sound, and
    where it is of a kind that this test says nothing of."""

    def scores(pictures: Tensor, texts: Sequence[str]) -> Mapping[str, float]:
        metric.reset()
        for first in range(0, len(pictures), 32):
            metric.update(pictures[first : first + 32], texts[first : first + 32])
        return metric.judge().scores

    faults: list[str] = []
    if metric.wants == "val":
        metric.forget_reference()
        metric.update(images, real=True)
        noise = [scores(noisy(images, level), prompts) for level in (0, 16, 64)]
        blur = [scores(blurred(images, share), prompts) for share in (1, 0.5, 0.25)]
        metric.forget_reference()
        for name, higher in metric.headlines.items():
            if higher:
                continue
            for what, series in (("noise", noise), ("blur", blur)):
                values = [made[name] for made in series]
                if not values[0] < values[1] < values[2]:
                    told = " to ".join(f"{value:.4g}" for value in values)
                    faults.append(f"{name} does not grow with {what} ({told})")
            if abs(noise[0][name]) > NEAR * abs(noise[2][name]):
                faults.append(f"{name} between pictures and themselves is {noise[0][name]:.4g}, not about 0")
    elif metric.wants is None and len(set(prompts)) > 1:
        true, shuffled = scores(images, prompts), scores(images, [*prompts[1:], prompts[0]])
        faults += [
            f"{name} is {true[name]:.4g} with true captions and {shuffled[name]:.4g} with shuffled ones"
            for name in metric.headlines
            if not shuffled[name] < true[name]
        ]
    metric.reset()
    return faults


def self_test(
    metrics: Mapping[str, ImageMetric], described: Mapping[str, Any], real: CaptionedImages, cache_dir: Path
) -> None:
    """Raises ValueError that names what is broken. That a metric, as `described`, is sound with these real pictures is
    kept in `cache_dir`. One process tests, and all hear of it."""
    told: list[str | None] = [None]
    if processes()[0] == 0:
        index = np.arange(min(COUNT, len(real)))
        images, prompts = torch.from_numpy(real.images(index)), [real.captions[int(i)] for i in index]
        faults: list[str] = []
        for name, metric in metrics.items():
            file = cache_dir / f"self_test_{digest_of([described[name], real.fingerprint, COUNT])}.json"
            if not file.is_file():
                found = faults_of(metric, images, prompts)
                faults += found
                if not found:
                    write_atomic(file, "sound\n")
        if faults:
            told = [f"the evaluator fails its self-test on real pictures and must not be believed: {'; '.join(faults)}"]
    if processes()[1] > 1:
        torch.distributed.broadcast_object_list(told)
    if told[0]:
        raise ValueError(f"{told[0]}; leave these metrics out, or give them other weights")
