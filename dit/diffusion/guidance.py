"""Guidance turns a conditional denoiser into the function of (x, point) that a sampler walks with.

A guidance is called once for each batch, so what it remembers from step to step lives in the function it returns.
Predictions are affine in x0 and the weights of guidance sum to one: guiding x0, eps or v is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

from dit.diffusion.denoiser import Denoise, Denoiser
from dit.diffusion.path import Point
from dit.diffusion.prediction import Estimate, Network
from dit.diffusion.sampler.consistency import consistency
from dit.diffusion.sampler.ddim import ddim
from dit.diffusion.sampler.ddpm import ddpm
from dit.diffusion.sampler.transition import innermost
from dit.types import Condition


class Guidance(Protocol):
    """(denoiser, condition, null) -> what a sampler walks with; null is the condition of no text, or None."""

    @property
    def uses_null(self) -> bool:
        """Whether the null condition, or a negative prompt in its place, changes the result."""
        ...

    def supports(self, sampler: object) -> bool:
        """Whether the guidance works with a sampler."""
        ...

    def __call__(self, denoiser: Denoiser, condition: Condition, null: Condition | None) -> Denoise: ...


def check_scale(scale: float) -> None:
    if scale < 0:
        raise ValueError(f"guidance scale={scale} must not be negative")


def both(denoiser: Denoiser, condition: Condition, null: Condition | None) -> Callable[..., tuple[Estimate, Estimate]]:
    """(x, point) -> the estimates with the condition and without it, from one call on a batch of twice the size."""
    if null is None:
        raise ValueError(
            "guidance leads away from the condition of no text, and the model was trained on pictures without captions "
            "or with caption_dropout=0: use guidance.scale=1 or guidance=auto, or, where it has captions, a negative "
            "prompt"
        )
    every = torch.ones(len(condition), dtype=torch.bool, device=condition.device)
    doubled = Condition.cat([condition, condition.drop(every, null)])

    def pair(x: Tensor, point: Point) -> tuple[Estimate, Estimate]:
        cond, plain = denoiser(torch.cat([x, x]), point.repeat(2), doubled).chunk(2)
        return cond, plain

    return pair


def unguided(denoiser: Denoiser, condition: Condition) -> Denoise:
    """The conditional model, at one network evaluation a call."""
    return lambda x, point: denoiser(x, point, condition)


Combine = Callable[[Tensor, Point, Estimate, Estimate], Estimate]  # of (x, point, with the condition, without it)


class FromPair:
    """A guidance made of the estimates with the condition and without it. Scale 1 is the plain conditional model and
    costs one network evaluation a call; any other scale costs two. Subclasses give `combine`, anew for each batch."""

    def __init__(self, scale: float = 1.0) -> None:
        check_scale(scale)
        self.scale = scale

    @property
    def uses_null(self) -> bool:
        return self.scale != 1

    def supports(self, sampler: object) -> bool:
        return True

    def combine(self) -> Combine:
        raise NotImplementedError

    def __call__(self, denoiser: Denoiser, condition: Condition, null: Condition | None) -> Denoise:
        if self.scale == 1:
            return unguided(denoiser, condition)
        pair, combine = both(denoiser, condition, null), self.combine()
        return lambda x, point: combine(x, point, *pair(x, point))


class ClassifierFree(FromPair):
    """null + scale (cond - null) (Ho and Salimans 2022, arXiv:2207.12598, eq. 6, whose w is scale - 1).

    `channels` guides the first few channels of eps alone, as the original DiT does with 3 of its 4, and leaves the rest
    conditional: needed to reproduce its published figures.
    """

    def __init__(self, scale: float = 1.0, channels: int | None = None) -> None:
        super().__init__(scale)
        self.channels = channels

    def combine(self) -> Combine:
        def combined(x: Tensor, point: Point, cond: Estimate, plain: Estimate) -> Estimate:
            full = plain.lerp(cond, self.scale)
            if self.channels is None:
                return full
            kept = slice(0, self.channels), slice(self.channels, None)
            x0 = torch.cat([full.x0[:, kept[0]], cond.x0[:, kept[1]]], dim=1)
            eps = torch.cat([full.eps[:, kept[0]], cond.eps[:, kept[1]]], dim=1)
            return Estimate(x0, eps, cond.var_logit)

        return combined


class Interval:
    """Guidance between two noise levels and none outside, where a call costs one network evaluation (Kynkäänniemi et
    al. 2024, arXiv:2404.07724).

    lowest, highest: the interval, in time t or in log(alpha / sigma) as `measure` says, both ends within. By default
    sigma / alpha lies in [0.37, 3.3], the paper's interval for data of unit variance.
    """

    def __init__(
        self,
        scale: float = 1.0,
        lowest: float = -1.2,
        highest: float = 1.0,
        measure: Literal["t", "log_snr"] = "log_snr",
        guidance: Callable[[float], Guidance] = ClassifierFree,
    ) -> None:
        if measure not in ("t", "log_snr"):
            raise ValueError(f"guidance interval: measure={measure!r} is not one of t, log_snr")
        if not lowest < highest:
            raise ValueError(f"guidance interval: lowest={lowest} must be below highest={highest}")
        self.lowest, self.highest, self.measure, self.guidance = lowest, highest, measure, guidance(scale)

    @property
    def uses_null(self) -> bool:
        return self.guidance.uses_null

    def supports(self, sampler: object) -> bool:
        return self.guidance.supports(sampler)

    def __call__(self, denoiser: Denoiser, condition: Condition, null: Condition | None) -> Denoise:
        inside, outside = self.guidance(denoiser, condition, null), unguided(denoiser, condition)

        def guided(x: Tensor, point: Point) -> Estimate:
            place = point.t if self.measure == "t" else point.log_snr
            within = (self.lowest <= place) & (place <= self.highest)
            if not isinstance(within, Tensor) or bool(within.all()) or not bool(within.any()):
                return (inside if bool(torch.as_tensor(within).all()) else outside)(x, point)
            return outside(x, point).lerp(inside(x, point), within.double())

        return guided


class Rescaled(FromPair):
    """Classifier-free guidance whose x0 gets back part of the conditional x0's contrast (Lin et al. 2024,
    arXiv:2305.08891, eq. 15 and 16, with x0 for the model's output).

    amount: 0 is plain guidance, 1 the full standard deviation of each sample.
    """

    def __init__(self, scale: float = 1.0, amount: float = 0.7) -> None:
        super().__init__(scale)
        if not 0 <= amount <= 1:
            raise ValueError(f"guidance rescale: amount={amount} must lie in [0, 1]")
        self.amount = amount

    def combine(self) -> Combine:
        def combined(x: Tensor, point: Point, cond: Estimate, plain: Estimate) -> Estimate:
            x0 = torch.lerp(plain.x0, cond.x0, self.scale)
            axes = tuple(range(1, x.dim()))
            factor = cond.x0.std(axes, keepdim=True) / x0.std(axes, keepdim=True)
            return Estimate.of_x0(x, x0 * (self.amount * factor + 1 - self.amount), point, cond.var_logit)

        return combined


class AdaptiveProjected(FromPair):
    """Guidance by the part of cond - null that is orthogonal to cond, bounded and with reverse momentum, in x0
    (APG, Sadat et al. 2025, arXiv:2410.02416, algorithm 1): high scales without oversaturation.

    momentum: share of the earlier differences, negative to push away from them. bound: the largest norm of a sample's
    difference, 0 for none. parallel: the share of the parallel part that stays; 1 with no bound and no momentum is
    classifier-free guidance.
    """

    def __init__(self, scale: float = 1.0, momentum: float = -0.5, bound: float = 15.0, parallel: float = 0.0) -> None:
        super().__init__(scale)
        if bound < 0:
            raise ValueError(f"apg: bound={bound} is a norm and must not be negative; 0 is none")
        self.momentum, self.bound, self.parallel = momentum, bound, parallel

    def combine(self) -> Combine:
        running: Tensor | None = None

        def combined(x: Tensor, point: Point, cond: Estimate, plain: Estimate) -> Estimate:
            nonlocal running
            difference = cond.x0 - plain.x0
            running = difference if running is None else difference + self.momentum * running
            axes = tuple(range(1, x.dim()))
            push = running
            if self.bound:
                norm = push.square().sum(axes, keepdim=True).sqrt()
                push = push * (self.bound / norm).clamp(max=1)
            along = (push * cond.x0).sum(axes, keepdim=True) / cond.x0.square().sum(axes, keepdim=True) * cond.x0
            push = push - (1 - self.parallel) * along
            return Estimate.of_x0(x, cond.x0 + (self.scale - 1) * push, point, cond.var_logit)

        return combined


class CfgPlusPlus:
    """The guided x0 with the unconditional eps (CFG++, Chung et al. 2024, arXiv:2406.08070, algorithm 2).

    scale: the paper's lambda, in [0, 1]; every scale, 1 too, uses the null condition and costs two network evaluations.
    It is made for samplers that jump along (x0, eps); those that take x0 or eps alone would leave out one half of it,
    and are refused.
    """

    def __init__(self, scale: float = 0.6) -> None:
        if not 0 <= scale <= 1:
            raise ValueError(f"cfg_plus_plus: scale={scale} must lie in [0, 1], e.g. guidance.scale=0.6")
        self.scale = scale
        self.uses_null = True

    def supports(self, sampler: object) -> bool:
        return innermost(sampler) in (ddim, ddpm, consistency)

    def __call__(self, denoiser: Denoiser, condition: Condition, null: Condition | None) -> Denoise:
        pair = both(denoiser, condition, null)

        def guided(x: Tensor, point: Point) -> Estimate:
            cond, plain = pair(x, point)
            return Estimate(torch.lerp(plain.x0, cond.x0, self.scale), plain.eps, cond.var_logit)

        return guided


class Auto:
    """weak + scale (strong - weak), where a worse network with the same condition takes the place of no condition
    (autoguidance, Karras et al. 2024, arXiv:2406.02507, eq. 1). Each call costs an evaluation of both."""

    def __init__(self, network: Network, scale: float = 1.0) -> None:
        check_scale(scale)
        self.network, self.scale = network, scale
        self.uses_null = False

    def supports(self, sampler: object) -> bool:
        return True

    def __call__(self, denoiser: Denoiser, condition: Condition, null: Condition | None) -> Denoise:
        if self.scale == 1:
            return unguided(denoiser, condition)
        if isinstance(self.network, torch.nn.Module):
            self.network.to(condition.device)

        def guided(x: Tensor, point: Point) -> Estimate:
            strong, weak = denoiser(x, point, condition), denoiser(x, point, condition, network=self.network)
            return weak.lerp(strong, self.scale)

        return guided
