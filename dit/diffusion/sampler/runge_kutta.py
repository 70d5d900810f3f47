"""Runge-Kutta methods on the probability-flow ODE, in a choice of variables (`Frame`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from torch import Tensor

from dit.diffusion.denoiser import Denoise
from dit.diffusion.path import Point
from dit.diffusion.prediction import Estimate
from dit.diffusion.sampler.transition import StepNoise, weighted


@dataclass(frozen=True)
class Frame:
    """The variables of the ODE: the independent variable, and the state, x or x / alpha, with its derivative."""

    variable: Callable[[Point], float]
    at: Callable[[Point, float], Point]  # (any point of the path, a value of the variable) -> the point there
    slope: Callable[[Estimate, Point], Tensor]
    scaled: bool  # the state is x / alpha


TIME = Frame(
    variable=lambda point: point.t,
    at=lambda point, t: point.path.point(t),
    slope=Estimate.velocity,
    scaled=False,
)
SIGMA = Frame(
    variable=lambda point: point.sigma / point.alpha,
    at=lambda point, ratio: point.path.point_of_log_snr(-math.log(ratio)),
    slope=lambda estimate, point: estimate.eps,
    scaled=True,
)
LOG_SNR = Frame(
    variable=lambda point: point.log_snr,
    at=lambda point, log_snr: point.path.point_of_log_snr(log_snr),
    slope=lambda estimate, point: -(point.sigma / point.alpha) * estimate.eps,
    scaled=True,
)
FRAMES = {"t": TIME, "sigma": SIGMA, "log_snr": LOG_SNR}

# A Butcher tableau: for each stage its position in the step and the weights of the earlier slopes; then the weights of
# all slopes for the whole step.
Tableau = tuple[list[tuple[float, list[float]]], list[float]]
HEUN: Tableau = ([(0.0, []), (1.0, [1.0])], [1 / 2, 1 / 2])
RK4: Tableau = ([(0.0, []), (0.5, [0.5]), (0.5, [0.0, 0.5]), (1.0, [0.0, 0.0, 1.0])], [1 / 6, 1 / 3, 1 / 3, 1 / 6])


def one_step(denoise: Denoise, x: Tensor, here: Point, there: Point, tableau: Tableau, frame: Frame) -> Tensor:
    """Returns x at `there` from x at `here`. `there` must have sigma > 0, as the slope may be singular at sigma = 0."""
    start, length = frame.variable(here), frame.variable(there) - frame.variable(here)
    stages, weights = tableau
    state = x / here.alpha if frame.scaled else x
    slopes: list[Tensor] = []
    for position, mix in stages:
        point = here if position == 0 else there if position == 1 else frame.at(here, start + position * length)
        at = state + length * weighted(mix, slopes) if slopes else state
        slopes.append(frame.slope(denoise(point.alpha * at if frame.scaled else at, point), point))
    end = state + length * weighted(weights, slopes)
    return there.alpha * end if frame.scaled else end


def runge_kutta(
    denoise: Denoise, x: Tensor, points: Sequence[Point], noise: StepNoise, tableau: Tableau = HEUN, frame: str = "t"
) -> Tensor:
    """An explicit Runge-Kutta method, with one network evaluation per stage. A step to sigma = 0 is an Euler step, as
    the slope may be singular there. Raises ValueError if the frame is unknown, or if it is sigma (in units of alpha) or
    log_snr and the grid starts at alpha = 0."""
    if frame not in FRAMES:
        raise ValueError(f"frame={frame!r} is not one of {', '.join(FRAMES)}")
    if FRAMES[frame].scaled and points[0].alpha == 0:
        raise ValueError(
            f"frame={frame} cannot start at t={points[0].t:g}, where alpha=0: choose frame=t, or a time grid that "
            f"starts at alpha > 0, such as grid.start=0.99"
        )
    for here, there in pairwise(points):
        x = (
            denoise(x, here).jump(there)
            if there.sigma == 0
            else one_step(denoise, x, here, there, tableau, FRAMES[frame])
        )
    return x


heun = partial(runge_kutta, tableau=HEUN)
rk4 = partial(runge_kutta, tableau=RK4)
