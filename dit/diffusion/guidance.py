"""Guidance turns a conditional denoiser into the function of (x, point) that a sampler calls.

A guidance is called once per batch, and the function that it returns holds the state of that batch (momentum).
Predictions are affine in x0 and the weights of guidance sum to one, so guiding x0, eps or v is equivalent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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
    """A function of (denoiser, condition, null) that returns the denoise function of a sampler. null: the null
    condition, one row, or None if the model has none."""

    @property
    def uses_null(self) -> bool:
        """Whether the null condition, or a negative prompt instead of it, changes the result."""
        ...

    def supports(self, sampler: object) -> bool:
        """Returns whether the guidance works with a sampler."""
        ...

    def __call__(self, denoiser: Denoiser, condition: Condition, null: Condition | None) -> Denoise: ...


def check_scale(scale: float) -> None:
    if scale < 0:
        raise ValueError(f"guidance scale={scale} must not be negative")


def paired(
    denoiser: Denoiser, condition: Condition, null: Condition | None
) -> Callable[[Tensor, Point], tuple[Estimate, Estimate]]:
    """Returns a function of (x, point) that gives the conditional and the unconditional estimate, from one network call
    with twice the batch size. Raises ValueError if there is no null condition."""
    if null is None:
        raise ValueError(
            "guidance needs the null condition, but the model was trained on pictures without captions or with "
            "caption_dropout=0: use guidance.scale=1 or guidance=auto, or, if it was trained with captions, a negative "
            "prompt"
        )
    all_rows = torch.ones(len(condition), dtype=torch.bool, device=condition.device)
    doubled = Condition.cat([condition, condition.drop(all_rows, null)])

    def pair(x: Tensor, point: Point) -> tuple[Estimate, Estimate]:
        cond, uncond = denoiser(torch.cat([x, x]), point.repeat(2), doubled).chunk(2)
        return cond, uncond

    return pair


def unguided(denoiser: Denoiser, condition: Condition) -> Denoise:
    """Returns the conditional denoise function; each call costs one network evaluation."""
    return lambda x, point: denoiser(x, point, condition)


Combine = Callable[[Tensor, Point, Estimate, Estimate], Estimate]  # of (x, point, conditional, unconditional)


class FromPair:
    """A guidance that combines the conditional and the unconditional estimate. Scale 1 is the conditional model and
    costs one network evaluation per call; any other scale costs two. Subclasses implement `combine`, which returns a
    new function for each batch."""

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
        pair, combine = paired(denoiser, condition, null), self.combine()
        return lambda x, point: combine(x, point, *pair(x, point))


class ClassifierFree(FromPair):
    """Classifier-free guidance, null + scale (cond - null) (Ho and Salimans 2022, arXiv:2207.12598, eq. 6, with w =
    scale - 1).

    channels: the number of leading channels that are guided, or None for all; the others stay conditional. The original
    DiT guides 3 of its 4 channels, which its published results need.
    """

    def __init__(self, scale: float = 1.0, channels: int | None = None) -> None:
        super().__init__(scale)
        self.channels = channels

    def combine(self) -> Combine:
        def combined(x: Tensor, point: Point, cond: Estimate, uncond: Estimate) -> Estimate:
            full = uncond.lerp(cond, self.scale)
            if self.channels is None:
                return full
            first, rest = slice(0, self.channels), slice(self.channels, None)
            x0 = torch.cat([full.x0[:, first], cond.x0[:, rest]], dim=1)
            eps = torch.cat([full.eps[:, first], cond.eps[:, rest]], dim=1)
            return Estimate(x0, eps, cond.var_logit)

        return combined


class Interval:
    """Guidance within an interval of noise levels and none outside it, where a call costs one network evaluation
    (Kynkäänniemi et al. 2024, arXiv:2404.07724).

    lowest, highest: the closed interval. measure: its unit, t or log(alpha / sigma). The default is sigma / alpha in
    [0.37, 3.3], the paper's interval for data of unit variance.
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
            level = point.t if self.measure == "t" else point.log_snr
            within = (self.lowest <= level) & (level <= self.highest)
            if not isinstance(within, Tensor) or bool(within.all()) or not bool(within.any()):
                return (inside if bool(torch.as_tensor(within).all()) else outside)(x, point)
            return outside(x, point).lerp(inside(x, point), within.double())

        return guided


class Rescaled(FromPair):
    """Classifier-free guidance whose x0 is rescaled towards the conditional x0's standard deviation (Lin et al. 2024,
    arXiv:2305.08891, eq. 15 and 16, applied to x0 instead of the network output).

    amount: in [0, 1]; 0 is plain guidance, 1 restores the standard deviation of each sample.
    """

    def __init__(self, scale: float = 1.0, amount: float = 0.7) -> None:
        super().__init__(scale)
        if not 0 <= amount <= 1:
            raise ValueError(f"guidance rescale: amount={amount} must be in [0, 1]")
        self.amount = amount

    def combine(self) -> Combine:
        def combined(x: Tensor, point: Point, cond: Estimate, uncond: Estimate) -> Estimate:
            x0 = torch.lerp(uncond.x0, cond.x0, self.scale)
            axes = tuple(range(1, x.dim()))
            factor = cond.x0.std(axes, keepdim=True) / x0.std(axes, keepdim=True)
            return Estimate.of_x0(x, x0 * (self.amount * factor + 1 - self.amount), point, cond.var_logit)

        return combined


class AdaptiveProjected(FromPair):
    """Adaptive projected guidance in x0: the part of cond - null that is orthogonal to cond, with bounded norm and
    negative momentum (APG, Sadat et al. 2025, arXiv:2410.02416, algorithm 1): high scales without oversaturation.

    momentum: the weight of the earlier differences (the paper's beta, negative). bound: the largest norm of a sample's
    difference, 0 for no bound. parallel: the weight of the parallel part; 1 with no bound and no momentum is
    classifier-free guidance.
    """

    def __init__(self, scale: float = 1.0, momentum: float = -0.5, bound: float = 15.0, parallel: float = 0.0) -> None:
        super().__init__(scale)
        if bound < 0:
            raise ValueError(f"apg: bound={bound} is a norm and must not be negative; 0 is no bound")
        self.momentum, self.bound, self.parallel = momentum, bound, parallel

    def combine(self) -> Combine:
        running: Tensor | None = None

        def combined(x: Tensor, point: Point, cond: Estimate, uncond: Estimate) -> Estimate:
            nonlocal running
            difference = cond.x0 - uncond.x0
            running = difference if running is None else difference + self.momentum * running
            axes = tuple(range(1, x.dim()))
            update = running
            if self.bound:
                norm = update.square().sum(axes, keepdim=True).sqrt()
                update = update * (self.bound / norm).clamp(max=1)
            along = (update * cond.x0).sum(axes, keepdim=True) / cond.x0.square().sum(axes, keepdim=True) * cond.x0
            update = update - (1 - self.parallel) * along
            return Estimate.of_x0(x, cond.x0 + (self.scale - 1) * update, point, cond.var_logit)

        return combined


class CfgPlusPlus:
    """The guided x0 with the unconditional eps (CFG++, Chung et al. 2024, arXiv:2406.08070, algorithm 2).

    scale: the paper's lambda, in [0, 1]; every scale, including 1, uses the null condition and costs two network
    evaluations. It supports only samplers whose step uses x0 and eps together; a sampler that uses only one of them
    would ignore half of this guidance.
    """

    def __init__(self, scale: float = 0.6) -> None:
        if not 0 <= scale <= 1:
            raise ValueError(f"cfg_plus_plus: scale={scale} must be in [0, 1], e.g. guidance.scale=0.6")
        self.scale = scale
        self.uses_null = True

    def supports(self, sampler: object) -> bool:
        return innermost(sampler) in (ddim, ddpm, consistency)

    def __call__(self, denoiser: Denoiser, condition: Condition, null: Condition | None) -> Denoise:
        pair = paired(denoiser, condition, null)

        def guided(x: Tensor, point: Point) -> Estimate:
            cond, uncond = pair(x, point)
            return Estimate(torch.lerp(uncond.x0, cond.x0, self.scale), uncond.eps, cond.var_logit)

        return guided


class Auto:
    """Autoguidance: weak + scale (strong - weak), with a weaker network under the same condition instead of the null
    condition (Karras et al. 2024, arXiv:2406.02507, eq. 1). Each call evaluates both networks."""

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


class Embedded:
    """The scale as an input of a network that has learned it: one that is distilled from a guided one (Meng et al.
    2023, arXiv:2210.03142), such as FLUX.1-dev, or a flow map (`dit.diffusion.flow_map`). Each call costs one network
    evaluation."""

    def __init__(self, scale: float = 3.5) -> None:
        check_scale(scale)
        self.scale, self.uses_null = scale, False

    def supports(self, sampler: object) -> bool:
        return True

    def __call__(self, denoiser: Denoiser, condition: Condition, null: Condition | None) -> Denoise:
        scale = torch.full((len(condition),), float(self.scale), device=condition.device)
        return unguided(denoiser, replace(condition, extra={**condition.extra, "guidance_scale": scale}))
