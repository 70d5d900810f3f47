"""The sampler interface, and the first-order step that samplers share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from dit.diffusion.denoiser import Denoise
from dit.diffusion.path import Point, has_noise, like
from dit.diffusion.prediction import Estimate


class StepNoise(Protocol):
    """Standard normal noise of x's shape for the step between two points, such as `dit.diffusion.noise.Noise`."""

    def __call__(self, here: Point, there: Point) -> Tensor: ...

    def fork(self, key: int) -> StepNoise:
        """Returns independent noise, for samplers that repeat a segment of the grid."""
        ...


class Sampler(Protocol):
    """A function that takes x from points[0] to points[-1]; `noise(here, there)` is the noise of a step."""

    def __call__(self, denoise: Denoise, x: Tensor, points: Sequence[Point], noise: StepNoise) -> Tensor: ...


class SamplerWrapper:
    """A sampler that uses another one, `sampler`."""

    sampler: Sampler


def innermost(sampler: object) -> object:
    """Returns a sampler's underlying function or object, without wrappers and `functools.partial`."""
    while isinstance(sampler, SamplerWrapper | partial):
        sampler = sampler.sampler if isinstance(sampler, SamplerWrapper) else sampler.func
    return sampler


def per_sample(sampler: Sampler) -> bool:
    """Returns whether a sampler needs a batch size of 1, because its steps depend on the whole batch. Such a sampler
    has the attribute `per_sample = True`; functions without the attribute do not need it."""
    return bool(getattr(innermost(sampler), "per_sample", False))


def transition(estimate: Estimate, here: Point, there: Point, fresh: Any, noise: StepNoise) -> Tensor:
    """Returns x' = alpha' x0 + sqrt(sigma'^2 - s^2) eps + s z, the step of first-order samplers, with fresh noise z of
    standard deviation s. No noise is drawn for s = 0. Points and s may have one value per sample."""
    x = estimate.jump(there, fresh)
    return x + like(x, fresh) * noise(here, there) if has_noise(fresh) else x


def weighted(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """Returns sum_i w_i v_i, for at least one value."""
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = total.add(value, alpha=weight)
    return total


def check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value} is the share of fresh noise and must be in [0, 1]")
