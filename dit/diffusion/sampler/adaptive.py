"""dopri5, an ODE solver with adaptive step sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dit.diffusion.denoiser import Denoise
from dit.diffusion.path import Point
from dit.diffusion.sampler.runge_kutta import TIME
from dit.diffusion.sampler.transition import StepNoise
from dit.types import has_float64


class Dopri5:
    """Solves the probability-flow ODE by Dormand and Prince's method of order 5 to tolerances (torchdiffeq), from the
    grid's first point to its last. If the last has sigma = 0, it integrates to sigma / alpha = sigma_min and then takes
    one Euler step. The grid's other points are not used.

    The step sizes depend on the error over the whole batch, so each sample is solved separately. Raises ValueError for
    a batch of more than one.
    """

    per_sample = True

    def __init__(self, rtol: float = 1e-4, atol: float = 1e-4, sigma_min: float = 0.01) -> None:
        if not (rtol > 0 and atol > 0 and sigma_min > 0):
            raise ValueError(f"dopri5: rtol={rtol}, atol={atol} and sigma_min={sigma_min} must be positive")
        self.rtol, self.atol, self.sigma_min = rtol, atol, sigma_min

    def __call__(self, denoise: Denoise, x: Tensor, points: Sequence[Point], noise: StepNoise) -> Tensor:
        from torchdiffeq import odeint

        if len(x) != 1:
            raise ValueError(f"dopri5 needs a batch of 1, not {len(x)}: its steps depend on the whole batch")
        path, first, last = points[0].path, points[0], points[-1]
        stop = last
        if last.sigma == 0:
            stop = path.point(max(path.point_of_log_snr(-math.log(self.sigma_min)).t, path.first))
        precise = torch.float64 if has_float64(x.device) else torch.float32

        def slope(t: Tensor, state: Tensor) -> Tensor:
            point = path.point(float(t))
            return TIME.slope(denoise(state, point), point)

        if first.t > stop.t or last.sigma > 0:
            # step_t: without it the last adaptive step evaluates the network beyond the end.
            times = torch.tensor([first.t, stop.t], dtype=precise, device=x.device)
            options = {"step_t": times[1:], "dtype": precise}
            x = odeint(slope, x, times, rtol=self.rtol, atol=self.atol, method="dopri5", options=options)[-1]
        return denoise(x, stop).jump(last) if last.sigma == 0 else x
