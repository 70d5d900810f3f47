"""The one step that samplers are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from dit.diffusion.denoiser import Denoise
from dit.diffusion.path import Point
from dit.diffusion.prediction import Estimate


class StepNoise(Protocol):
    """Standard normal noise of x's shape for the step between two points, as `dit.diffusion.noise.Noise` makes it."""

    def __call__(self, here: Point, there: Point) -> Tensor: ...

    def fork(self, key: int) -> StepNoise:
        """Other noise, independent of this one: for a sampler that walks a stretch more than once."""
        ...


class Sampler(Protocol):
    """Walks x from points[0] down to points[-1]; `noise(here, there)` is the noise of a step."""

    def __call__(self, denoise: Denoise, x: Tensor, points: Sequence[Point], noise: StepNoise) -> Tensor: ...


class SamplerWrapper:
    """A sampler that walks with another one, `sampler`."""

    sampler: Sampler


def innermost(sampler: object) -> object:
    """The function or object itself that a sampler is, without wrappers and options."""
    while isinstance(sampler, SamplerWrapper | partial):
        sampler = sampler.sampler if isinstance(sampler, SamplerWrapper) else sampler.func
    return sampler


def per_sample(sampler: Sampler) -> bool:
    """Whether a sampler takes one sample at a time, as one does whose steps depend on all it is given. Such a sampler
    has the attribute `per_sample = True`; most are plain functions without one."""
    return bool(getattr(innermost(sampler), "per_sample", False))


def jump(estimate: Estimate, there: Point, fresh: float = 0.0) -> Tensor:
    """alpha' x0 + sqrt(sigma'^2 - s^2) eps: along an estimate, with room left for a part s of fresh noise."""
    return there.alpha * estimate.x0 + math.sqrt(max(there.sigma**2 - fresh**2, 0.0)) * estimate.eps


def transition(estimate: Estimate, here: Point, there: Point, fresh: float, noise: StepNoise) -> Tensor:
    """x' = alpha' x0 + sqrt(sigma'^2 - s^2) eps + s z, the step of every sampler of first order. Nothing is drawn for
    s = 0."""
    x = jump(estimate, there, fresh)
    return x + fresh * noise(here, there) if fresh else x


def weighted(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """sum_i w_i v_i, for at least one value."""
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = total.add(value, alpha=weight)
    return total


def check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value} is a share of fresh noise and must lie in [0, 1]")


def exp_minus_h(here: Point, there: Point) -> float:
    """e^(-h) = (alpha / alpha') (sigma' / sigma), with h = lambda' - lambda; a quotient, so no digits cancel."""
    return (here.alpha / there.alpha) * (there.sigma / here.sigma)


def ancestral_stds(here: Point, there: Point) -> tuple[Any, Any]:
    """The standard deviations of q(x_there | x_here, x0) and of q(x_here | x_there): sigma' sqrt(1 - e^(-2h)) and
    sigma sqrt(1 - e^(-2h)), the lower and the upper bound of an optimal reverse step's."""
    ratio = exp_minus_h(here, there)
    share = 1 - ratio * ratio  # below 0 where a walk goes up, which leaves no room for noise
    root = share.clamp(min=0).sqrt() if isinstance(share, Tensor) else math.sqrt(max(share, 0.0))
    return there.sigma * root, here.sigma * root
