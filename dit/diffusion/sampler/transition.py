"""The one step that samplers are made of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from dit.diffusion.denoiser import Denoise
from dit.diffusion.path import Point, has_noise, like
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


def transition(estimate: Estimate, here: Point, there: Point, fresh: Any, noise: StepNoise) -> Tensor:
    """x' = alpha' x0 + sqrt(sigma'^2 - s^2) eps + s z, the step of every sampler of first order, with fresh noise of
    standard deviation s. Nothing is drawn for s = 0. Points and s may be of one time for each sample."""
    x = estimate.jump(there, fresh)
    return x + like(x, fresh) * noise(here, there) if has_noise(fresh) else x


def weighted(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """sum_i w_i v_i, for at least one value."""
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = total.add(value, alpha=weight)
    return total


def check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value} is a share of fresh noise and must lie in [0, 1]")
