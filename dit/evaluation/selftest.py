"""The evaluator tests itself before it reports: a broken one must not be believed.

Distances must be about 0 between pictures and themselves, and grow with noise and with blur. Agreement with prompts
must fall when the prompts are shuffled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dit.code_digest import code_digest, foreign_code
from dit.data.order import subset
from dit.distributed import raise_on_all_ranks, rank_and_world_size
from dit.evaluation.sweep import digest_of
from dit.files import write_atomic
from dit.metrics.base import ImageMetric
from dit.scoring.references import SCORING_CODE
from dit.types import CaptionedImages

COUNT = 16  # real pictures, chosen at random, that it is made with: so few that the slowest network needs seconds
NEAR = 0.05  # of the distance of the noisiest pictures: what still counts as none


def noisy(images: Tensor, level: float) -> Tensor:
    """(N, 3, H, W) uint8, with noise of `level` grey values in them; always the same."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + level * noise).round().clamp(0, 255).to(torch.uint8)


def blurred(images: Tensor, share: float) -> Tensor:
    """(N, 3, H, W) uint8, scaled down to a share of their side and up again."""
    sides = [max(1, round(side * share)) for side in images.shape[-2:]]
    small = F.interpolate(images.float(), sides, mode="bilinear", antialias=True)
    wide = F.interpolate(small, images.shape[-2:], mode="bilinear")
    return wide.round().clamp(0, 255).to(torch.uint8)


def faults_of(metrics: Mapping[str, ImageMetric], images: Tensor, prompts: Sequence[str]) -> list[str]:
    """What the metrics get wrong about (N, 3, H, W) uint8 real pictures and their prompts; nothing of those that are
    sound, or of a kind that this test says nothing of. Metrics of one network look through it together."""
    distances = {k: m for k, m in metrics.items() if m.reference_split == "val" and not all(m.headlines.values())}
    ignores_prompts = {k for k, m in metrics.items() if m.reference_split or not m.uses_prompts}
    prompts_differ = len(set(prompts)) > 1 and all(prompts)
    agreements = {k: m for k, m in metrics.items() if k not in ignores_prompts and prompts_differ}
    faults: list[str] = []
    if distances:
        for metric in distances.values():
            metric.reset_reference()
            metric.update(images, real=True)
        clean = _scores(distances, images, prompts)
        noise = [clean] + [_scores(distances, noisy(images, level), prompts) for level in (16, 64)]
        blur = [clean] + [_scores(distances, blurred(images, share), prompts) for share in (0.5, 0.25)]
        for metric in distances.values():
            metric.reset_reference()
        for key, metric in distances.items():
            for name in (name for name, higher in metric.headlines.items() if not higher):
                faults += _faults_of_distance(name, *([s[key][name] for s in series] for series in (noise, blur)))
    if agreements:
        true, shuffled = (_scores(agreements, images, texts) for texts in (prompts, [*prompts[1:], prompts[0]]))
        faults += [
            f"{name} is {true[key][name]:.4g} with true captions and {shuffled[key][name]:.4g} with shuffled ones"
            for key, metric in agreements.items()
            for name in metric.headlines
            if not shuffled[key][name] < true[key][name]
        ]
    return faults


def _scores(
    metrics: Mapping[str, ImageMetric], images: Tensor, prompts: Sequence[str]
) -> dict[str, Mapping[str, float]]:
    """By each metric, without regard to other processes."""
    for metric in metrics.values():
        metric.reset()
        metric.update(images, prompts)
    found = {key: metric.compute_scores().scores for key, metric in metrics.items()}
    for metric in metrics.values():
        metric.reset()
    return found


def _faults_of_distance(name: str, noise: Sequence[float], blur: Sequence[float]) -> list[str]:
    faults = []
    for what, values in (("noise", noise), ("blur", blur)):
        if not values[0] < values[1] < values[2]:
            faults.append(f"{name} does not grow with {what} ({' to '.join(f'{value:.4g}' for value in values)})")
    if abs(noise[0]) > NEAR * abs(noise[2]):
        faults.append(f"{name} between pictures and themselves is {noise[0]:.4g}, not about 0")
    return faults


def self_test(
    metrics: Mapping[str, ImageMetric], described: Mapping[str, Any], real: CaptionedImages, cache_dir: Path
) -> None:
    """Raises ValueError that names what is broken. That a metric, as `described` and by dit's code, is sound with these
    real pictures is kept in `cache_dir`. One process tests, and the others get its verdict."""
    with raise_on_all_ranks():
        if rank_and_world_size()[0] == 0:
            index = subset(len(real), COUNT)
            code = code_digest(*SCORING_CODE, "evaluation/selftest")
            images, prompts = torch.from_numpy(real.images(index)), [real.captions[int(i)] for i in index]
            keys = {
                name: digest_of([described[name], real.fingerprint, COUNT, code, foreign_code(real)])
                for name in metrics
            }
            files = {name: cache_dir / f"self_test_{key}.txt" for name, key in keys.items()}
            untested = {name: metrics[name] for name, file in files.items() if not file.is_file()}
            if faults := faults_of(untested, images, prompts):
                raise ValueError(
                    f"the evaluator fails its self-test on real pictures and must not be believed: "
                    f"{'; '.join(faults)}; leave these metrics out, or give them other weights"
                )
            for name in untested:
                write_atomic(files[name], "sound\n")
