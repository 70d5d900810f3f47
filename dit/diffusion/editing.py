"""Editing pictures in the samplers' own loop: another start, another denoiser, or the grid walked back up; any sampler.

Everything here works on latents (or pictures, where there is no autoencoder), on any path.
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
    """What sampling starts from and must keep.

    x0: (B, C, ...) float32, or one row for all. strength: in [0, 1], the share of the grid that is walked: 0 gives x0
    back and 1 starts at the grid's first point (SDEdit, Meng et al. 2022, arXiv:2108.01073). mask: (B or 1, 1, ...)
    float32 in [0, 1], 1 where the picture is made new and 0 where x0 stays, or None to make all of it new. source: what
    x0 itself shows, one row; with it the walk begins at x0's own noise, found by inversion, and not at fresh noise.
    """

    x0: Tensor
    strength: float = 1.0
    mask: Tensor | None = None
    source: Condition | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength={self.strength} must lie in [0, 1]: 0 keeps the picture, 1 makes it new")
        if self.mask is not None and self.mask.shape[1:] != (1, *self.x0.shape[2:]):
            raise ValueError(
                f"mask of shape {tuple(self.mask.shape)} does not fit x0 of shape {tuple(self.x0.shape)}: it must be "
                f"(B or 1, 1, {', '.join(map(str, self.x0.shape[2:]))})"
            )

    def __getitem__(self, rows: slice) -> Edit:
        """Some rows; what is one row for all stays so."""
        x0 = self.x0 if len(self.x0) == 1 else self.x0[rows]
        mask = self.mask if self.mask is None or len(self.mask) == 1 else self.mask[rows]
        return Edit(x0, self.strength, mask, self.source)

    def start(self, points: Sequence[Point], z: Tensor, denoiser: Denoiser) -> tuple[Tensor, list[Point]]:
        """(x, the points still to walk): x0 with the noise z (B, C, H, W) of the first of them, or with its own."""
        if len(self.x0) not in (1, len(z)) or (self.mask is not None and len(self.mask) not in (1, len(z))):
            raise ValueError(
                f"{len(z)} samples are made from {len(self.x0)} pictures; give one for each, or one for all"
            )
        left = list(points[round((len(points) - 1) * (1 - self.strength)) :])
        if self.source is None or len(left) == 1:
            return left[0].alpha * self.x0 + left[0].sigma * z, left
        x0 = self.x0.expand_as(z)
        return invert(unguided(denoiser, self.source.expand(len(z))), x0, left)

    def keep(self, denoise: Denoise) -> Denoise:
        """The denoiser that knows what lies outside the mask: there its x0 is the given one, and its eps the noise
        that x holds. Along its estimates a sampler finds, after every step, the known region exactly as noisy as the
        path says, and at the end exactly as given; so inpainting needs no sampler of its own (RePaint, Lugmayr et al.
        2022, arXiv:2201.09865, eq. 8, with one noise for all steps)."""
        if self.mask is None:
            return denoise
        mask = self.mask

        def kept(x: Tensor, point: Point) -> Estimate:
            estimate = denoise(x, point)
            known = Estimate.of_x0(x, self.x0, point)
            return Estimate(
                torch.lerp(known.x0, estimate.x0, mask), torch.lerp(known.eps, estimate.eps, mask), estimate.var_logit
            )

        return kept


def outpaint(x0: Tensor, border: tuple[int, int, int, int], strength: float = 1.0) -> Edit:
    """x0 (B, C, H, W) on a larger canvas: `border` has the columns and rows to make new on the left, top, right and
    bottom. Below strength 1 they start from what lies at x0's edge."""
    left, top, right, bottom = border
    if min(border) < 0:
        raise ValueError(f"outpainting adds to each side, and cannot add {min(border)}")
    sides = (left, right, top, bottom)
    mask = F.pad(torch.zeros_like(x0[:, :1]), sides, value=1.0)
    return Edit(F.pad(x0, sides, mode="replicate"), strength, mask)


def renoise(x: Tensor, here: Point, there: Point, z: Tensor) -> Tensor:
    """A draw from q(x_there | x_here), `there` being the noisier: one jump forward along the path."""
    ratio = there.alpha / here.alpha
    return like(x, ratio) * x + like(x, root(there.sigma**2 - (ratio * here.sigma) ** 2)) * z


class Resampled(SamplerWrapper):
    """Another sampler, that walks every stretch of the grid several times: down, back up by fresh noise, and down again
    (RePaint, Lugmayr et al. 2022, algorithm 1). With `Edit.keep` the made region gets to agree with the kept one.

    times: how often each stretch is walked down. stretch: its length in steps. To the sampler each stretch is a grid of
    its own: multistep methods begin anew, and EDM's churn is spread over the stretch.
    """

    def __init__(self, sampler: Sampler, times: int = 4, stretch: int = 4) -> None:
        if times < 1 or stretch < 1:
            raise ValueError(f"resampling: times={times} and stretch={stretch} must be at least 1")
        self.sampler, self.times, self.stretch = sampler, times, stretch

    def __call__(self, denoise: Denoise, x: Tensor, points: Sequence[Point], noise: StepNoise) -> Tensor:
        for first in range(0, len(points) - 1, self.stretch):
            part = points[first : first + self.stretch + 1]
            for round_ in range(self.times):
                # Every way down and up again has noise of its own; the first has that of the sampler by itself.
                x = self.sampler(denoise, x, part, noise.fork(2 * round_) if round_ else noise)
                if round_ < self.times - 1:
                    up = noise.fork(2 * round_ + 1)(part[-1], part[0])
                    x = renoise(x, part[-1], part[0], up)
        return x


class NoNoise:
    """What a deterministic sampler gets for noise. Raises ValueError when it is drawn."""

    def __call__(self, here: Point, there: Point) -> Tensor:
        raise ValueError("inversion is deterministic: choose a sampler that draws no noise")

    def fork(self, key: int) -> NoNoise:
        return self


def invert(
    denoise: Denoise, x0: Tensor, points: Sequence[Point], sampler: Sampler = heun
) -> tuple[Tensor, list[Point]]:
    """(x, points): the noise from which a deterministic sampler makes x0, and the grid to walk down from it.

    The probability-flow ODE is walked up the grid, from alpha x0 at the last point with noise to the first with signal:
    beyond either the ODE may be singular. The way down again gives x0, up to the method's error.
    """
    down = [point for point in points if point.alpha > 0]
    up = [point for point in reversed(down) if point.sigma > 0]
    if not up:
        raise ValueError("inversion needs a grid with a point between noise and data: take more steps")
    return sampler(denoise, up[0].alpha * x0, up, NoNoise()), down
