"""An adaptive method: dopri5 chooses its own steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dit.diffusion.denoiser import Denoise
from dit.diffusion.path import Point
from dit.diffusion.sampler.runge_kutta import TIME
from dit.diffusion.sampler.transition import Draw, jump


class Dopri5:
    """The probability-flow ODE from the grid's first point to its last with noise, by Dormand and Prince's method of
    order 5 to tolerances, then a plain jump to x0 (torchdiffeq). The grid's inner points are not used.

    An error estimate looks at all it is given, so each sample is solved alone: `alone` asks for batches of one.
    """

    alone = True

    def __init__(self, rtol: float = 1e-4, atol: float = 1e-4) -> None:
        if not (rtol > 0 and atol > 0):
            raise ValueError(f"dopri5: rtol={rtol} and atol={atol} must be positive")
        self.rtol, self.atol = rtol, atol

    def __call__(self, denoise: Denoise, x: Tensor, points: Sequence[Point], noise: Draw) -> Tensor:
        from torchdiffeq import odeint

        if len(x) != 1:
            raise ValueError(
                f"dopri5 solves one sample at a time, as its steps depend on all it is given, not {len(x)}"
            )
        path, (*_, end, last) = points[0].path, points

        def slope(t: Tensor, state: Tensor) -> Tensor:
            point = path.point(float(t))
            return TIME.slope(denoise(state, point), point)

        if len(points) > 2:
            # step_t: an adaptive step would otherwise overshoot the end, where the network must not be asked.
            times = torch.tensor([points[0].t, end.t], dtype=torch.float64)
            solved = odeint(
                slope, x, times, rtol=self.rtol, atol=self.atol, method="dopri5", options={"step_t": times[1:]}
            )
            x = solved[-1]
        return jump(denoise(x, end), last)
