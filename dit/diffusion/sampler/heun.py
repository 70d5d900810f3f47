"""Heun's method on the probability-flow ODE, in the frame of t."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from dit.diffusion.denoiser import Denoise
from dit.diffusion.path import Point
from dit.diffusion.prediction import Estimate
from dit.diffusion.sampler.transition import Draw, transition


def velocity(estimate: Estimate, point: Point) -> Tensor:
    """dx/dt = alpha' x0 + sigma' eps."""
    return point.d_alpha * estimate.x0 + point.d_sigma * estimate.eps


def heun(denoise: Denoise, x: Tensor, points: Sequence[Point], noise: Draw) -> Tensor:
    """Second order, two calls a step (Karras et al. 2022, arXiv:2206.00364, algorithm 1). A step that ends without
    noise is a plain jump to x0, as the velocity may be singular there: 2 n - 1 calls for n steps."""
    for here, there in pairwise(points):
        estimate = denoise(x, here)
        if there.sigma == 0:
            x = transition(estimate, there)
            continue
        slope, dt = velocity(estimate, here), there.t - here.t
        ahead = velocity(denoise(x + dt * slope, there), there)
        x = x + dt * (slope + ahead) / 2
    return x
