"""Guidance turns a conditional denoiser into the function of (x, point) that a sampler walks with."""

from __future__ import annotations

import torch
from torch import Tensor

from dit.diffusion.denoiser import Denoise, Denoiser
from dit.diffusion.path import Point
from dit.diffusion.prediction import Estimate
from dit.types import Condition


class ClassifierFree:
    """null + scale (cond - null) (Ho and Salimans 2022, arXiv:2207.12598, eq. 6, whose w is scale - 1).

    Scale 1 is the plain conditional model and costs one network evaluation a call; any other scale costs two.
    """

    def __init__(self, scale: float = 1.0) -> None:
        if scale < 0:
            raise ValueError(f"guidance scale={scale} must not be negative")
        self.scale = scale

    def __call__(self, denoiser: Denoiser, condition: Condition, null: Condition) -> Denoise:
        if self.scale == 1:
            return lambda x, point: denoiser(x, point, condition)
        both = Condition.cat([condition, null.expand(len(condition))])

        def guided(x: Tensor, point: Point) -> Estimate:
            estimate = denoiser(torch.cat([x, x]), point, both)
            x0, x0_null = estimate.x0.chunk(2)
            eps, eps_null = estimate.eps.chunk(2)
            return Estimate(torch.lerp(x0_null, x0, self.scale), torch.lerp(eps_null, eps, self.scale))

        return guided
