"""Image editing with any sampler: a different start, a wrapped denoiser, or integration from data to noise.

Everything here works on latents (or on pixels, if there is no autoencoder), on any path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dit.diffusion.denoiser import Denoise, Denoiser
from dit.diffusion.guidance import unguided
from dit.diffusion.path import Point, like, root
from dit.diffusion.prediction import Estimate
from dit.diffusion.sampler.runge_kutta import heun
from dit.diffusion.sampler.transition import Sampler, SamplerWrapper, StepNoise
from dit.types import Condition


@dataclass(frozen=True)
class Edit:
    """The input image of sampling, and the part of it that is kept.

    x0: (B, C, ...) float32, or one row for all. strength: in [0, 1], the share of the grid's steps that are sampled: 0
    returns x0 and 1 starts at the grid's first point (SDEdit, Meng et al. 2022, arXiv:2108.01073). mask: (B or 1, 1,
    ...) float32 in [0, 1], 1 where the image is generated and 0 where x0 is kept, or None to generate all of it.
    source: the condition that describes x0, one row; with it, sampling starts from the noise found by inversion of x0
    instead of fresh noise.
    """

    x0: Tensor
    strength: float = 1.0
    mask: Tensor | None = None
    source: Condition | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength={self.strength} must be in [0, 1]: 0 keeps the picture, 1 replaces it")
        if self.mask is not None and self.mask.shape[1:] != (1, *self.x0.shape[2:]):
            raise ValueError(
                f"mask of shape {tuple(self.mask.shape)} does not fit x0 of shape {tuple(self.x0.shape)}: it must be "
                f"(B or 1, 1, {', '.join(map(str, self.x0.shape[2:]))})"
            )

    def __getitem__(self, rows: slice) -> Edit:
        """Returns the edit of some rows; a part with one row for all is unchanged."""
        x0 = self.x0 if len(self.x0) == 1 else self.x0[rows]
        mask = self.mask if self.mask is None or len(self.mask) == 1 else self.mask[rows]
        return Edit(x0, self.strength, mask, self.source)

    def start(self, points: Sequence[Point], z: Tensor, denoiser: Denoiser) -> tuple[Tensor, list[Point]]:
        """Returns x and the remaining points: x is x0 noised with z (B, C, H, W) to the first of these points, or by
        inversion. Raises ValueError if the numbers of samples and images do not fit."""
        if len(self.x0) not in (1, len(z)) or (self.mask is not None and len(self.mask) not in (1, len(z))):
            raise ValueError(
                f"{len(z)} samples cannot start from {len(self.x0)} pictures; give one for each, or one for all"
            )
        remaining = list(points[round((len(points) - 1) * (1 - self.strength)) :])
        if self.source is None or len(remaining) == 1:
            return remaining[0].alpha * self.x0 + remaining[0].sigma * z, remaining
        x0 = self.x0.expand_as(z)
        return invert(unguided(denoiser, self.source.expand(len(z))), x0, remaining)

    def keep(self, denoise: Denoise) -> Denoise:
        """Returns a denoiser whose estimate outside the mask is the given x0 and the eps that x contains. After every
        step the kept region has exactly the noise level of the path, and at the end it equals x0, so any sampler does
        inpainting (RePaint, Lugmayr et al. 2022, arXiv:2201.09865, eq. 8, with one noise for all steps)."""
        if self.mask is None:
            return denoise
        mask = self.mask

        def kept(x: Tensor, point: Point) -> Estimate:
            estimate = denoise(x, point)
            given = Estimate.of_x0(x, self.x0, point)
            return Estimate(
                torch.lerp(given.x0, estimate.x0, mask), torch.lerp(given.eps, estimate.eps, mask), estimate.var_logit
            )

        return kept


def outpaint(x0: Tensor, border: tuple[int, int, int, int], strength: float = 1.0) -> Edit:
    """Returns an edit that extends x0 (B, C, H, W): `border` is the number of columns and rows to generate on the left,
    top, right and bottom. Below strength 1 they start from x0's replicated edge. Raises ValueError if one is negative.
    """
    left, top, right, bottom = border
    if min(border) < 0:
        raise ValueError(f"outpainting adds to each side, and cannot add {min(border)}")
    sides = (left, right, top, bottom)
    mask = F.pad(torch.zeros_like(x0[:, :1]), sides, value=1.0)
    return Edit(F.pad(x0, sides, mode="replicate"), strength, mask)


def renoise(x: Tensor, here: Point, there: Point, z: Tensor) -> Tensor:
    """Returns a sample of q(x_there | x_here), with `there` the noisier point and z standard normal."""
    ratio = there.alpha / here.alpha
    return like(x, ratio) * x + like(x, root(there.sigma**2 - (ratio * here.sigma) ** 2)) * z


class Resampled(SamplerWrapper):
    """A sampler that applies another one several times to every segment of the grid, and adds noise in between to
    return to the segment's start (RePaint, Lugmayr et al. 2022, algorithm 1). With `Edit.keep` this harmonizes the
    generated region with the kept one.

    times: how often each segment is sampled. stretch: the segment's length in steps. The inner sampler gets each
    segment as a separate grid: multistep methods restart, and EDM distributes its churn over the segment.
    """

    def __init__(self, sampler: Sampler, times: int = 4, stretch: int = 4) -> None:
        if times < 1 or stretch < 1:
            raise ValueError(f"resampling: times={times} and stretch={stretch} must be at least 1")
        self.sampler, self.times, self.stretch = sampler, times, stretch

    def __call__(self, denoise: Denoise, x: Tensor, points: Sequence[Point], noise: StepNoise) -> Tensor:
        for first in range(0, len(points) - 1, self.stretch):
            part = points[first : first + self.stretch + 1]
            for round_ in range(self.times):
                # Every repetition has independent noise; the first has that of sampling without repetition.
                x = self.sampler(denoise, x, part, noise.fork(2 * round_) if round_ else noise)
                if round_ < self.times - 1:
                    up = noise.fork(2 * round_ + 1)(part[-1], part[0])
                    x = renoise(x, part[-1], part[0], up)
        return x


class NoNoise:
    """The noise argument of deterministic samplers. Raises ValueError if it is called."""

    def __call__(self, here: Point, there: Point) -> Tensor:
        raise ValueError("inversion is deterministic: choose a sampler that draws no noise")

    def fork(self, key: int) -> NoNoise:
        return self


def invert(
    denoise: Denoise, x0: Tensor, points: Sequence[Point], sampler: Sampler = heun
) -> tuple[Tensor, list[Point]]:
    """Returns (x, points): the noise from which a deterministic sampler generates x0, and the grid that starts there.

    Integrates the probability-flow ODE from alpha x0, at the last point with sigma > 0, to the first with alpha > 0:
    outside them the ODE may be singular. Sampling from x gives x0 up to the integration error. Raises ValueError if the
    grid has no such point.
    """
    down = [point for point in points if point.alpha > 0]
    up = [point for point in reversed(down) if point.sigma > 0]
    if not up:
        raise ValueError("inversion needs a grid with a point between noise and data: take more steps")
    return sampler(denoise, up[0].alpha * x0, up, NoNoise()), down
