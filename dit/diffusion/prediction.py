"""Predictions: what a network outputs, y = a x0 + b eps. Each prediction is a pair (a, b); one 2x2 solve serves all.

A prediction also defines the network's inputs: the scale of x (c_in) and the time conditioning (c_noise).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dit.diffusion.path import Point, like, root
from dit.types import Condition, Network

TimeConditioning = Callable[[Point], Any]
MAX_GAIN = 1e4  # the largest allowed ratio of the error of x0 to the error of the network output


@dataclass(frozen=True)
class Estimate:
    """A denoiser's estimate at x_t: the clean x0 and the noise eps, both of x's shape, float32 or float64.

    var_logit: of x's shape, or None: for networks with a learned variance, the position of the log variance between
    the lower bound (-1) and the upper bound (1) of a sampling step.
    """

    x0: Tensor
    eps: Tensor
    var_logit: Tensor | None = None

    @classmethod
    def of_x0(cls, x: Tensor, x0: Tensor, point: Point, var_logit: Tensor | None = None) -> Estimate:
        """Returns the estimate with this x0 and eps = (x - alpha x0) / sigma; sigma must not be 0."""
        at = point.like(x)
        return cls(x0, (x - at.alpha * x0) / at.sigma, var_logit)

    def velocity(self, point: Point) -> Tensor:
        """Returns dx/dt of the probability flow, alpha' x0 + sigma' eps (Lipman et al. 2023, arXiv:2210.02747)."""
        at = point.like(self.x0)
        return at.d_alpha * self.x0 + at.d_sigma * self.eps

    def score(self, point: Point) -> Tensor:
        """Returns the score, the gradient of log p_t at x: -eps / sigma (Song et al. 2021, arXiv:2011.13456)."""
        return self.eps * (-1 / point.like(self.eps).sigma)

    def jump(self, there: Point, fresh: Any = 0.0) -> Tensor:
        """Returns alpha' x0 + sqrt(sigma'^2 - s^2) eps: x at another point for this estimate, before fresh noise of
        standard deviation s is added."""
        return like(self.x0, there.alpha) * self.x0 + like(self.x0, root(there.sigma**2 - fresh**2)) * self.eps

    def chunk(self, parts: int) -> list[Estimate]:
        """Returns the estimates of equal parts of the batch."""
        var_logit = [None] * parts if self.var_logit is None else self.var_logit.chunk(parts)
        return [Estimate(*one) for one in zip(self.x0.chunk(parts), self.eps.chunk(parts), var_logit, strict=True)]

    def lerp(self, other: Estimate, weight: Any) -> Estimate:
        """Returns self + weight (other - self), for one weight or a tensor of one weight per sample, (B,). var_logit is
        the other's."""
        w = like(self.x0, weight)
        return Estimate(torch.lerp(self.x0, other.x0, w), torch.lerp(self.eps, other.eps, w), other.var_logit)


def rows_of(*values: Any) -> Iterator[tuple[float, ...]]:
    """Yields the values of each sample, from floats or tensors (B,)."""
    if any(isinstance(value, Tensor) for value in values):
        tensors = torch.broadcast_tensors(*(torch.as_tensor(value) for value in values))
        yield from zip(*(tensor.flatten().tolist() for tensor in tensors), strict=True)
    else:
        yield values


def scaled_time(point: Point) -> Any:
    """Returns 1000 t, the scale that sinusoidal embeddings expect."""
    return 1000 * point.t


def unscaled_time(point: Point) -> Any:
    """Returns t, for flow maps: their losses differentiate the network with respect to the time."""
    return point.t


def timestep(point: Point) -> Any:
    """Returns 1000 t - 1, the index of a chain of 1000 betas."""
    return 1000 * point.t - 1


def reversed_time(point: Point) -> Any:
    """Returns 1 - t, the time of SiT's code: from noise to data, and not scaled."""
    return 1 - point.t


def quarter_log_sigma(point: Point) -> Any:
    """Returns log(sigma / alpha) / 4 (Karras et al. 2022, table 1, c_noise). Raises ValueError if alpha = 0."""
    if isinstance(point.t, Tensor):
        return (point.sigma / point.alpha).log() / 4
    if point.alpha == 0:
        raise ValueError(
            f"EDM's time conditioning log(sigma / alpha) is infinite at t={point.t:g}: start the time grid where "
            f"alpha > 0, such as grid=karras, or grid.start=0.99 of grid=uniform_time"
        )
    return -point.log_snr / 4


def one_per_sample(value: Any, x: Tensor) -> Tensor:
    """Returns one float32 number per sample of x, (B,), on its device, from a float or a tensor of B values."""
    if isinstance(value, Tensor):
        return value.flatten().float()
    return torch.full((len(x),), value, dtype=torch.float32, device=x.device)


class Prediction:
    """A network output y = a x0 + b eps. Subclasses implement `weights`, the pair (a, b) at a point. `outputs` is the
    number of output channels per channel of x."""

    outputs = 1

    def __init__(self, c_noise: TimeConditioning = scaled_time) -> None:
        self.c_noise = c_noise

    def weights(self, point: Point) -> tuple[Any, Any]:
        raise NotImplementedError

    def input_scale(self, point: Point) -> Any:
        """Returns c_in, the factor of the network's input x."""
        return point.path.input_scale(point)

    def call_network(self, network: Network, x: Tensor, point: Point, condition: Condition) -> Tensor:
        """Returns the network output at x (B, C, ...), in x's dtype, float32 or float64. A flow map also gets the
        duration t - end of its jump, in `Condition.extra`."""
        at = point.like(x)
        time = one_per_sample(self.c_noise(at), x)
        if at.end is not None:
            condition = replace(condition, extra={**condition.extra, "duration": one_per_sample(at.t - at.end, x)})
        return network(self.input_scale(at) * x, time, condition).to(x.dtype)

    def blank_output(self, x: Tensor) -> Tensor:
        """Returns a finite output of the right shape, to check a recipe before the network is called."""
        return torch.cat([x] * self.outputs, dim=1)

    def target(self, x0: Tensor, eps: Tensor, point: Point) -> Tensor:
        """Returns the training target a x0 + b eps at x_t = alpha x0 + sigma eps."""
        a, b = self.weights(point.like(x0))
        return a * x0 + b * eps

    def loss(self, output: Tensor, x0: Tensor, noise: Tensor, point: Point, weight: Any = 1.0) -> Tensor:
        """Returns (B,) float32: the weighted squared error of an output at x_t, averaged over a sample's elements."""
        error = output - self.target(x0, noise, point)
        return (like(x0, weight) * error.square()).flatten(1).mean(1)

    def estimate(self, x: Tensor, y: Tensor, point: Point) -> Estimate:
        """Solves x = alpha x0 + sigma eps, y = a x0 + b eps for (x0, eps).

        Raises ValueError if the two equations are nearly linearly dependent, such as those of eps at alpha near 0: the
        error of x0 would be more than MAX_GAIN times that of the output.
        """
        a, b = self.weights(point)
        det = point.alpha * b - point.sigma * a
        for t, alpha, sigma, size in rows_of(point.t, point.alpha, point.sigma, det):
            if abs(size) * MAX_GAIN <= sigma:
                raise ValueError(
                    f"{type(self).__name__} prediction does not determine x0 at t={t:g}, where alpha={alpha:.2g}, "
                    f"sigma={sigma:.2g}: start the time grid at a larger alpha, such as grid.start=0.99 of "
                    f"grid=uniform_time, or use prediction=v or flow"
                )
        a, b, det, at = like(x, a), like(x, b), like(x, det), point.like(x)
        return Estimate(x0=(b * x - at.sigma * y) / det, eps=(at.alpha * y - a * x) / det)

    def d_x0_d_output(self, point: Point) -> Any:
        """Returns the derivative of x0 with respect to the network output at fixed x: -sigma / det. Its square converts
        a weight of the squared error of x0 into a weight of that of the output."""
        a, b = self.weights(point)
        return -point.sigma / (point.alpha * b - point.sigma * a)


class X0(Prediction):
    """x0 prediction: y = x0."""

    def weights(self, point: Point) -> tuple[Any, Any]:
        return 1.0, 0.0


class Eps(Prediction):
    """Noise prediction: y = eps (DDPM, Ho et al. 2020, eq. 14)."""

    def weights(self, point: Point) -> tuple[Any, Any]:
        return 0.0, 1.0


class V(Prediction):
    """v prediction: y = alpha eps - sigma x0 (Salimans and Ho 2022, arXiv:2202.00512)."""

    def weights(self, point: Point) -> tuple[Any, Any]:
        return -point.sigma, point.alpha


class Flow(Prediction):
    """Velocity prediction: y = dx_t/dt = alpha' x0 + sigma' eps (Lipman et al. 2023, arXiv:2210.02747)."""

    def weights(self, point: Point) -> tuple[Any, Any]:
        return point.d_alpha, point.d_sigma


class FlowToData(Flow):
    """SiT's velocity prediction: y = -dx_t/dt, from noise to data, with 1 - t as time conditioning (Ma et al. 2024,
    arXiv:2401.08740).

    outputs: 2 if the network has twice x's channels, whose second half is unused, as in the published weights; else 1.
    """

    def __init__(self, outputs: int = 2, c_noise: TimeConditioning = reversed_time) -> None:
        if outputs not in (1, 2):
            raise ValueError(f"outputs={outputs} must be 1, or 2 for a network whose second half of channels is unused")
        super().__init__(c_noise)
        self.outputs = outputs

    def weights(self, point: Point) -> tuple[Any, Any]:
        return -point.d_alpha, -point.d_sigma

    def call_network(self, network: Network, x: Tensor, point: Point, condition: Condition) -> Tensor:
        return super().call_network(network, x, point, condition)[:, : x.shape[1]]


class Score(Prediction):
    """Score prediction: y = -eps / sigma, the gradient of log p_t (Song et al. 2021, arXiv:2011.13456)."""

    def weights(self, point: Point) -> tuple[Any, Any]:
        return 0.0, -1 / point.sigma


class EDM(Prediction):
    """EDM's preconditioning: y = F of x0 = c_skip x + c_out F(c_in x) (Karras et al. 2022, arXiv:2206.00364, eq. 7 and
    table 1), with x in units of alpha, so that it works on any path. F's input and target have unit variance.

    sigma_data: the standard deviation of the data.
    """

    def __init__(self, sigma_data: float = 0.5, c_noise: TimeConditioning = quarter_log_sigma) -> None:
        if not sigma_data > 0:
            raise ValueError(f"sigma_data={sigma_data} is a standard deviation and must be positive")
        super().__init__(c_noise)
        self.sigma_data = sigma_data

    def input_scale(self, point: Point) -> Any:
        return (point.sigma**2 + (point.alpha * self.sigma_data) ** 2) ** -0.5

    def weights(self, point: Point) -> tuple[Any, Any]:
        c_in = self.input_scale(point)
        return c_in * point.sigma / self.sigma_data, -c_in * point.alpha * self.sigma_data


class LearnedRange(Prediction):
    """Another prediction plus the variance of a sampling step, as an interpolation between its bounds: the network has
    twice x's output channels (Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 15; DiT with eps)."""

    outputs = 2

    def __init__(self, mean: Prediction) -> None:
        super().__init__(mean.c_noise)
        self.mean = mean

    def weights(self, point: Point) -> tuple[Any, Any]:
        return self.mean.weights(point)

    def input_scale(self, point: Point) -> Any:
        return self.mean.input_scale(point)

    def estimate(self, x: Tensor, y: Tensor, point: Point) -> Estimate:
        if y.shape[1] != 2 * x.shape[1]:
            raise ValueError(
                f"a learned range needs a network with {2 * x.shape[1]} output channels for {x.shape[1]} input "
                f"channels, not {y.shape[1]}"
            )
        y, var_logit = y.chunk(2, dim=1)
        estimate = self.mean.estimate(x, y, point)
        return Estimate(estimate.x0, estimate.eps, var_logit)
