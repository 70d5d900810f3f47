"""The self-test of the metrics, before anything is reported.

Distances must be about 0 between pictures and themselves, and grow with noise and with blur. Agreement with prompts
must fall when the prompts are shuffled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dit.code_digest import code_digest, foreign_code
from dit.data.order import subset
from dit.distributed import raise_on_all_ranks, rank_and_world_size
from dit.encoders.reconstruction import shrunk
from dit.evaluation.sweep import digest_of
from dit.files import write_atomic
from dit.metrics.base import ImageMetric
from dit.scoring.references import SCORING_CODE
from dit.types import CaptionedImages

COUNT = 16  # real pictures, chosen at random: few, so that the slowest network takes seconds
TOLERANCE = 0.05  # of the distance of the noisiest pictures: smaller distances count as 0


def noisy(images: Tensor, level: float) -> Tensor:
    """Returns (N, 3, H, W) uint8 with added noise, which is always the same. level: its std in grey values."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + level * noise).round().clamp(0, 255).to(torch.uint8)


def faults_of(metrics: Mapping[str, ImageMetric], images: Tensor, prompts: Sequence[str]) -> list[str]:
    """Returns one sentence for each test that a metric fails on (N, 3, H, W) uint8 real pictures and their prompts.

    Metrics that are neither a distance nor an agreement with prompts are not tested: those with `uses_prompts` False
    and no real pictures, such as a score of aesthetics. Metrics with the same network share its forward passes.
    """
    with_reference = {k: m for k, m in metrics.items() if m.reference_split in ("val", "base")}
    distances = {k: m for k, m in with_reference.items() if not all(m.headlines.values())}
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
        blur = [clean] + [_scores(distances, shrunk(images, share), prompts) for share in (0.5, 0.25)]
        for metric in distances.values():
            metric.reset_reference()
        for key, metric in distances.items():
            for name in (name for name, higher in metric.headlines.items() if not higher):
                faults += _faults_of_distance(name, *([s[key][name] for s in series] for series in (noise, blur)))
    if agreements:
        true, shuffled = (_scores(agreements, images, texts) for texts in (prompts, [*prompts[1:], prompts[0]]))
        faults += [
            f"{name} is {true[key][name]:.4g} with true captions and {shuffled[key][name]:.4g} with shuffled ones"
            f"{' (a metric that reads no prompts has uses_prompts = False)' if shuffled[key] == true[key] else ''}"
            for key, metric in agreements.items()
            for name in metric.headlines
            if not shuffled[key][name] < true[key][name]
        ]
    return faults


def _scores(
    metrics: Mapping[str, ImageMetric], images: Tensor, prompts: Sequence[str]
) -> dict[str, Mapping[str, float]]:
    """Returns the scores of each metric, of this process's pictures only."""
    for metric in metrics.values():
        metric.reset()
        metric.update(images, prompts)
    found = {key: metric.compute_scores().scores for key, metric in metrics.items()}
    for metric in metrics.values():
        metric.reset()
    return found


def _faults_of_distance(name: str, noise: Sequence[float], blur: Sequence[float]) -> list[str]:
    faults = []
    for damage, values in (("noise", noise), ("blur", blur)):
        if not values[0] < values[1] < values[2]:
            faults.append(f"{name} does not grow with {damage} ({' to '.join(f'{value:.4g}' for value in values)})")
    if abs(noise[0]) > TOLERANCE * abs(noise[2]):
        faults.append(f"{name} between pictures and themselves is {noise[0]:.4g}, not about 0")
    return faults


def self_test(
    metrics: Mapping[str, ImageMetric], descriptions: Mapping[str, Any], real: CaptionedImages, cache_dir: Path
) -> None:
    """Raises ValueError with the tests that failed. Tested on rank 0, raised on all ranks.

    A metric that passed is not tested again: `cache_dir` keeps a file for its description, the real pictures and dit's
    code.
    """
    with raise_on_all_ranks():
        if rank_and_world_size()[0] == 0:
            index = subset(len(real), COUNT)
            code = code_digest(*SCORING_CODE, "encoders/reconstruction", "evaluation/selftest")
            images, prompts = torch.from_numpy(real.images(index)), [real.captions[int(i)] for i in index]
            keys = {
                name: digest_of([descriptions[name], real.fingerprint, COUNT, code, foreign_code(real)])
                for name in metrics
            }
            files = {name: cache_dir / f"self_test_{key}.txt" for name, key in keys.items()}
            untested = {name: metrics[name] for name, file in files.items() if not file.is_file()}
            if faults := faults_of(untested, images, prompts):
                raise ValueError(
                    f"metrics fail the self-test on real pictures, so their scores are not reliable: "
                    f"{'; '.join(faults)}; leave these metrics out, or use other weights"
                )
            for name in untested:
                write_atomic(files[name], "passed\n")
