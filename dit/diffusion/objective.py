"""Objectives: the loss of one batch as a function of a network and a `Draw`, independent of the trainer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from dit.diffusion.path import DiscreteBetas, Point, ancestral_stds, like, root
from dit.diffusion.prediction import LearnedRange, Prediction
from dit.diffusion.process import NetworkOutput, Process
from dit.diffusion.resolution import at_shape
from dit.diffusion.time import Density
from dit.types import Draw, Network

# --- weightings: (point, prediction) -> the weight of the squared error of the network output. Most papers weight the
#     error of x0 or eps; `d_x0_d_output` converts a weight of x0 into one of any prediction.

Weighting = Callable[[Any, Any], Tensor | float]


def snr(point: Point) -> Tensor:
    """Returns the signal-to-noise ratio alpha^2 / sigma^2."""
    return (point.alpha / point.sigma) ** 2


def uniform(point: Point, prediction: Prediction) -> float:
    """Returns weight 1 on the network output at every time (L_simple, Ho et al. 2020, eq. 14)."""
    return 1.0


def min_snr(point: Point, prediction: Prediction, gamma: float = 5.0) -> Tensor:
    """Returns weight min(SNR, gamma) on x0 (Hang et al. 2023, arXiv:2303.09556, eq. 8)."""
    return snr(point).clamp(max=gamma) * prediction.d_x0_d_output(point) ** 2


def soft_min_snr(point: Point, prediction: Prediction, gamma: float = 4.0) -> Tensor:
    """Returns weight 1 / (1 / SNR + 1 / gamma) on x0 (Crowson et al. 2024, arXiv:2401.11605)."""
    return 1 / (1 / snr(point) + 1 / gamma) * prediction.d_x0_d_output(point) ** 2


def p2(point: Point, prediction: Prediction, gamma: float = 1.0, k: float = 1.0) -> Tensor:
    """Returns weight 1 / (k + SNR)^gamma on eps (Choi et al. 2022, arXiv:2204.00227, eq. 8)."""
    return snr(point) / (k + snr(point)) ** gamma * prediction.d_x0_d_output(point) ** 2


def sigmoid(point: Point, prediction: Prediction, bias: float = 2.0) -> Tensor:
    """Returns weight sigmoid(bias - log SNR) on eps (Kingma and Gao 2023, arXiv:2303.00848), without the factor
    -d log SNR / dt of their loss."""
    return snr(point) * torch.sigmoid(bias - snr(point).log()) * prediction.d_x0_d_output(point) ** 2


def edm(point: Point, prediction: Prediction, sigma_data: float = 0.5) -> Tensor:
    """Returns weight (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 on x0, with sigma in units of alpha (Karras et al.
    2022, table 1): uniform for the EDM prediction."""
    return (1 / sigma_data**2 + snr(point)) * prediction.d_x0_d_output(point) ** 2


# --- objectives


class TrainingObjective(Protocol):
    """The loss of a network. `Objective` is the standard one; consistency, flow maps and alignment are others."""

    def __call__(self, network: Network, draw: Draw) -> Tensor:
        """Returns (B,) float32 losses."""
        ...


class Objective:
    """The loss of a prediction at x_t, with t drawn from a density; on a Gaussian path the weighted squared error.

    stratified: draw one time per sample from equal-probability intervals of the density, which lowers the variance of
    the loss. Raises ValueError if the prediction has a learned range and the objective does not train it, or the
    reverse.
    """

    learns_variance = False

    def __init__(
        self,
        path: Process,
        prediction: NetworkOutput,
        density: Density,
        weighting: Weighting = uniform,
        stratified: bool = False,
    ) -> None:
        if isinstance(prediction, LearnedRange) != self.learns_variance:
            raise ValueError(
                "a prediction with a learned range needs objective=hybrid, and objective=hybrid needs such a "
                "prediction: choose prediction=eps_learned_range together with objective=hybrid"
            )
        self.path, self.prediction, self.density, self.weighting = path, prediction, density, weighting
        self.stratified = stratified

    def __call__(self, network: Network, draw: Draw) -> Tensor:
        """Returns (B,) float32 losses."""
        point = self.path.point(self.times(draw))
        x = self.path.corrupt(draw.x0, draw.noise, point)
        output = self.prediction.call_network(network, x, point, draw.condition)
        return self.loss(output, draw.x0, draw.noise, point)

    def times(self, draw: Draw) -> Tensor:
        """Returns the times (B,) of a draw, float64 on the CPU."""
        u = draw.stratified if self.stratified and draw.stratified is not None else draw.u
        return at_shape(self.density, draw.x0.shape[1:])(self.path, u)

    def validation(self, network: Network, draw: Draw) -> dict[str, Tensor]:
        """Returns (B,) values by name that validation logs beside the loss."""
        return {}

    def loss(self, output: Tensor, x0: Tensor, noise: Tensor, point: Any) -> Tensor:
        """Returns (B,) losses of a network output at a point of (B,) float64 tensors on the CPU."""
        weight = check_finite(torch.as_tensor(self.weighting(point, self.prediction)), point, self.prediction)
        return self.prediction.loss(output, x0, noise, point, weight)


class Hybrid(Objective):
    """The squared error plus the variational bound of one step of a chain, in bits. Only the bound has gradients with
    respect to the learned variance, and it has none with respect to the mean (Nichol and Dhariwal 2021,
    arXiv:2102.09672, eq. 16; also DiT).

    The path must be a chain of betas; the bound has weight length / 1000, as in the authors' code. The likelihood of
    the last step assumes data with a spacing of 2 / 255.
    """

    learns_variance = True

    @property
    def steps(self) -> int:
        """The length of the chain. Raises ValueError if the path is not a chain of betas."""
        if not isinstance(self.path, DiscreteBetas):
            raise ValueError("objective=hybrid needs a chain of betas: choose path=ddpm_linear or another ddpm path")
        return self.path.steps

    def loss(self, output: Tensor, x0: Tensor, eps: Tensor, point: Point) -> Tensor:
        y, var_logit = output.chunk(2, dim=1)
        bound = self.bound(y.detach(), var_logit, x0, eps, point)
        return super().loss(y, x0, eps, point) + self.steps / 1000 * bound

    def bound(self, y: Tensor, var_logit: Tensor, x0: Tensor, eps: Tensor, point: Point) -> Tensor:
        """Returns (B,) bits per element: KL(q(x_s | x_t, x0) || p(x_s | x_t)), or -log p(x0 | x_t) at the last step."""
        assert isinstance(self.prediction, LearnedRange)
        index = (point.t * self.steps).round() - 1  # s, the step below t
        there = self.path.point(index.clamp(min=0) / self.steps)
        small, large = ancestral_stds(point, there)
        # q and p share x_t, so their means differ only by x0, which has this weight in the mean.
        x0_weight = there.alpha - root(there.sigma**2 - small**2) * point.alpha / point.sigma
        d_mean_d_output = like(
            x0, check_finite(x0_weight * self.prediction.d_x0_d_output(point), point, self.prediction)
        )
        mean_error = d_mean_d_output * (y - self.prediction.target(x0, eps, point))
        # The lower bound of the last step's variance is 0; that of the step before is used instead.
        first, second = (self.path.point(torch.full_like(point.t, k / self.steps)) for k in (1, 2))
        small = torch.where(index <= 0, ancestral_stds(second, first)[0], small)
        log_small, log_large = like(x0, 2 * small.log()), like(x0, 2 * large.log())
        log_variance = torch.lerp(log_small.expand_as(var_logit), log_large.expand_as(var_logit), (var_logit + 1) / 2)
        ratio = torch.exp(log_small - log_variance)
        kl = (log_variance - log_small + ratio - 1 + mean_error.square() * torch.exp(-log_variance)) / 2
        decoder = -discretized_log_likelihood(x0, x0 + mean_error, log_variance / 2, bins=255)
        nats = torch.where(like(x0, (index <= 0).double()) > 0, decoder, kl)
        return nats.flatten(1).mean(1) / math.log(2)


def check_finite(weight: Tensor, point: Any, prediction: object) -> Tensor:
    """Returns the weight, a CPU tensor. Raises ValueError if it has an infinite or NaN element."""
    if not bool(weight.isfinite().all()):
        raise ValueError(
            f"the weight of the {type(prediction).__name__} prediction's loss is infinite at t={point.t.max():g}, "
            f"where alpha is 0: choose weighting=uniform, a density below t=1, or prediction=v or flow"
        )
    return weight


def discretized_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor, bins: int) -> Tensor:
    """Returns the log probability under N(mean, std^2) of the bin of width 2 / bins around x; the outermost bins of
    [-1, 1] are unbounded (Ho et al. 2020, eq. 13). The normal CDF is approximated by the tanh of a cubic, as in the
    authors' code."""

    def cdf(z: Tensor) -> Tensor:
        return (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2

    above, below = ((x - mean + side / bins) * torch.exp(-log_std) for side in (1, -1))
    upper, lower = cdf(above), cdf(below)
    mass = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return mass.clamp(min=1e-12).log()
