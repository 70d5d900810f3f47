"""DDPM: ancestral sampling with a choice of variance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from dit.diffusion.denoiser import Denoise
from dit.diffusion.path import Point, ancestral_stds
from dit.diffusion.prediction import Estimate
from dit.diffusion.sampler.transition import StepNoise

Variance = Literal["small", "large", "learned"]


def ddpm(
    denoise: Denoise, x: Tensor, points: Sequence[Point], noise: StepNoise, variance: Variance = "small"
) -> Tensor:
    """DDPM: the posterior mean plus noise of the smaller or larger fixed variance (Ho et al. 2020, section 3.2), or of
    the learned variance between them (Nichol and Dhariwal 2021, eq. 15). The last step, to sigma = 0, adds no noise.
    Raises ValueError for another variance, or if variance is learned and the network does not predict it."""
    if variance not in ("small", "large", "learned"):
        raise ValueError(f"ddpm: variance={variance!r} is not one of small, large, learned")
    for here, there in pairwise(points):
        estimate = denoise(x, here)
        small, large = ancestral_stds(here, there)
        x = estimate.jump(there, fresh=small)
        if there.sigma > 0:
            fixed = {"small": small, "large": large}
            std = learned_std(estimate, small, large) if variance == "learned" else fixed[variance]
            x = x + std * noise(here, there)
    return x


def learned_std(estimate: Estimate, small: float, large: float) -> Tensor:
    """Returns the standard deviation between the two bounds, interpolated in log space by the estimate's var_logit."""
    if estimate.var_logit is None:
        raise ValueError(
            "ddpm: variance=learned needs a network with a learned variance (prediction=eps_learned_range in "
            "training): choose small or large"
        )
    share = (estimate.var_logit + 1) / 2
    return torch.exp(math.log(small) + share * (math.log(large) - math.log(small)))
