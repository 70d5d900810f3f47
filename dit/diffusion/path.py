"""Gaussian paths: x_t = alpha(t) x0 + sigma(t) eps, with t = 0 the data and t growing with noise.

A path is defined by alpha(t) and sigma(t); the log-SNR, its inverse and all samplers use only these. It implements
`dit.diffusion.process.Process`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dit.diffusion.noise import Noise
from dit.types import expand_like, to_device

if TYPE_CHECKING:
    from dit.diffusion.prediction import Estimate
    from dit.diffusion.sampler.transition import StepNoise

TINY = 1e-12  # the smallest sigma in the derivative of sigma, which is infinite at sigma = 0


@dataclass(frozen=True)
class Point:
    """One point on a path: time, alpha, sigma and their derivatives with respect to t.

    Each is a float (one time for a whole batch, as in samplers) or a tensor (B,) of float64 on the CPU (one time per
    sample, as in training). `like` returns tensors that broadcast against x. end: the time to which a flow map jumps
    from this point (`towards`), or None for its velocity; networks that are no flow maps do not read it.
    """

    t: Any
    alpha: Any
    sigma: Any
    d_alpha: Any
    d_sigma: Any
    path: Path = field(repr=False, compare=False)
    end: Any = None

    @property
    def log_snr(self) -> Any:
        """lambda = log(alpha / sigma): half the logarithm of the signal-to-noise ratio alpha^2 / sigma^2."""
        if isinstance(self.alpha, Tensor):
            return self.alpha.log() - self.sigma.log()
        if self.alpha == 0:
            return -math.inf
        return math.inf if self.sigma == 0 else math.log(self.alpha) - math.log(self.sigma)

    @property
    def std(self) -> Any:
        """The standard deviation of x at this point, for data of unit variance: that of the initial noise."""
        if isinstance(self.alpha, Tensor):
            return torch.hypot(self.alpha, self.sigma)
        return math.hypot(self.alpha, self.sigma)

    def like(self, x: Tensor) -> Point:
        """Returns a point whose tensors broadcast against x (B, ...), with its device and dtype; floats stay floats."""
        t, alpha, sigma = like(x, self.t), like(x, self.alpha), like(x, self.sigma)
        return Point(t, alpha, sigma, like(x, self.d_alpha), like(x, self.d_sigma), self.path, like(x, self.end))

    def towards(self, end: Any) -> Point:
        """Returns the point with the time, a float or (B,), to which a flow map jumps from here."""
        return replace(self, end=end)

    def repeat(self, times: int) -> Point:
        """Returns the point of a batch that is repeated `times` times."""
        if not isinstance(self.t, Tensor):
            return self
        return self.path.point(self.t.repeat(times)).towards(None if self.end is None else self.end.repeat(times))

    def __getitem__(self, row: int) -> Point:
        """Returns one sample's point, of floats."""
        if not isinstance(self.t, Tensor):
            return self
        return self.path.point(float(self.t.flatten()[row]))


def like(x: Tensor, value: Any) -> Any:
    """Returns one value per sample, (B,) or with x's number of axes, as a tensor that broadcasts against x and has its
    device and dtype. A float stays a float."""
    if not isinstance(value, Tensor):
        return value
    return to_device((expand_like(value, x) if value.dim() == 1 else value).to(x.dtype), x.device)


def root(square: Any) -> Any:
    """Returns the square root of a float or a tensor, and 0 for negative values, which result from rounding or from
    steps towards noise."""
    return square.clamp(min=0).sqrt() if isinstance(square, Tensor) else math.sqrt(max(square, 0.0))


def has_noise(std: Any) -> bool:
    """Returns whether a standard deviation, a float or one per sample, is above 0 for any sample."""
    return bool((std > 0).any()) if isinstance(std, Tensor) else std > 0


def exp_minus_h(here: Point, there: Point) -> Any:
    """Returns e^(-h) = (alpha / alpha') (sigma' / sigma), with h = lambda' - lambda; a quotient avoids cancellation."""
    return (here.alpha / there.alpha) * (there.sigma / here.sigma)


def ancestral_stds(here: Point, there: Point) -> tuple[Any, Any]:
    """Returns the standard deviations of q(x_there | x_here, x0) and of q(x_here | x_there): sigma' sqrt(1 - e^(-2h))
    and sigma sqrt(1 - e^(-2h)), the bounds of that of the optimal reverse step (Ho et al. 2020, section 3.2)."""
    ratio = exp_minus_h(here, there)
    share = root(1 - ratio * ratio)
    return there.sigma * share, here.sigma * share


class Path:
    """A Gaussian path. Subclasses implement `coefficients`. t is in [0, 1], from data to noise.

    first: the smallest time above 0 at which a network is evaluated.
    """

    first = 0.0

    def training_noise(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Returns one sample's eps: standard normal, float32, on the CPU."""
        return torch.randn(tuple(shape), generator=generator, dtype=torch.float32)

    def corrupt(self, x0: Tensor, noise: Tensor, point: Point) -> Tensor:
        """Returns x_t = alpha x0 + sigma eps, for x0 and eps of one shape (B, ...)."""
        at = point.like(x0)
        return at.alpha * x0 + at.sigma * noise

    def sampling_noise(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> Noise:
        """Returns the noise of samples of this shape, keyed by their seeds."""
        return Noise(seeds, shape, device)

    def prior(self, point: Point, noise: Noise) -> Tensor:
        """Returns the initial x of a grid that starts at this point: normal, with standard deviation `point.std`."""
        return point.std * noise.start()

    def step(self, estimate: Estimate, x: Tensor, here: Point, there: Point, noise: StepNoise) -> Tensor:
        """Returns a sample of q(x_there | x_here, x0) at the estimated x0: one ancestral step (Ho et al. 2020, eq. 7).
        x is not used, because the estimate determines it."""
        std = ancestral_stds(here, there)[0]
        x = estimate.jump(there, std)
        return x + like(x, std) * noise(here, there) if has_noise(std) else x

    def input_scale(self, point: Point) -> Any:
        """Returns c_in, the factor of a network's input, which keeps it at about unit variance."""
        return 1.0

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns (alpha, sigma, d alpha/dt, d sigma/dt) at times t, float of any shape; each has t's shape."""
        raise NotImplementedError

    def point(self, t: Tensor | float) -> Point:
        """Returns a point of tensors for a tensor of times, or a point of floats, computed in float64, for a float."""
        if isinstance(t, Tensor):
            return Point(t, *self.coefficients(t), self)
        alpha, sigma, d_alpha, d_sigma = (float(v) for v in self.coefficients(torch.tensor(t, dtype=torch.float64)))
        return Point(float(t), alpha, sigma, d_alpha, d_sigma, self)

    def point_of_log_snr(self, log_snr: float) -> Point:
        """Returns the point with this log(alpha / sigma), or the path's nearest end if it is out of range."""
        return self.point(float(self.time(torch.tensor(log_snr, dtype=torch.float64))))

    def shifted(self, t: Tensor, factor: float) -> Tensor:
        """Returns the times whose log(alpha / sigma) is lower by log(factor): the timestep shift for images of higher
        resolution (Hoogeboom et al. 2023, arXiv:2301.11093, eq. 3). On the linear path this is factor t / (1 + (factor
        - 1) t) (Esser et al. 2024, arXiv:2403.03206, eq. 23)."""
        if not factor > 0:
            raise ValueError(f"shift={factor} must be positive; above 1 it shifts times towards noise")
        alpha, sigma, *_ = self.coefficients(t.double())
        return self.time(alpha.log() - sigma.log() - math.log(factor)).to(t.dtype)

    def time(self, log_snr: Tensor) -> Tensor:
        """Returns the inverse of lambda(t) = log(alpha / sigma), in float64; a value out of the path's range gives the
        nearer end. This is a bisection; subclasses override it with a closed form."""
        low = torch.zeros_like(log_snr, dtype=torch.float64)
        high = torch.ones_like(low)
        for _ in range(64):
            middle = (low + high) / 2
            alpha, sigma, *_ = self.coefficients(middle)
            less_noisy = alpha.log() - sigma.log() > log_snr
            low, high = torch.where(less_noisy, middle, low), torch.where(less_noisy, high, middle)
        return torch.where(log_snr == math.inf, 0.0, (low + high) / 2)


class Linear(Path):
    """The linear path of rectified flow: alpha = 1 - t, sigma = t (Liu et al. 2023, arXiv:2209.03003, eq. 1)."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        one = torch.ones_like(t)
        return 1 - t, t, -one, one

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr.double())


class Cosine(Path):
    """The cosine path, variance preserving: alpha = cos and sigma = sin of an angle that grows to pi / 2.

    offset = 0 is the trigonometric path, alpha = cos(pi t / 2). A positive offset starts at a nonzero angle, scaled so
    that alpha(0) = 1, for more noise near the data (Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 17).
    """

    def __init__(self, offset: float = 0.0) -> None:
        if offset < 0:
            raise ValueError(f"offset={offset} of the cosine path must not be negative")
        self.offset = offset

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        speed = math.pi / 2 / (1 + self.offset)
        angle = speed * (t + self.offset)
        first = math.cos(speed * self.offset)
        alpha = torch.where(t == 1, 0.0, torch.where(t == 0, 1.0, torch.cos(angle) / first))
        d_alpha = -speed / first * torch.sin(angle)
        if self.offset == 0:
            return alpha, torch.sin(angle), d_alpha, speed * alpha
        sigma = (1 - alpha**2).clamp(min=0).sqrt()
        return alpha, sigma, d_alpha, -alpha * d_alpha / sigma.clamp(min=TINY)

    def time(self, log_snr: Tensor) -> Tensor:
        speed = math.pi / 2 / (1 + self.offset)
        alpha = torch.sigmoid(2 * log_snr.double()).sqrt()
        if self.offset == 0:
            return torch.atan(torch.exp(-log_snr.double())) / speed  # precise also for alpha near 1
        return torch.acos((alpha * math.cos(speed * self.offset)).clamp(max=1)) / speed - self.offset


class VP(Path):
    """The variance-preserving SDE with linear beta(t): alpha = exp(-(b0 t + (b1 - b0) t^2 / 2) / 2)
    (Song et al. 2021, arXiv:2011.13456, eq. 33)."""

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        if not 0 < beta_min <= beta_max:
            raise ValueError(f"beta_min={beta_min} and beta_max={beta_max} must be positive and ascending")
        self.beta_min, self.beta_max = beta_min, beta_max

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        growth = self.beta_max - self.beta_min
        log_alpha = -(self.beta_min * t + growth * t**2 / 2) / 2
        alpha, sigma = log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()
        d_alpha = -alpha * (self.beta_min + growth * t) / 2
        return alpha, sigma, d_alpha, -alpha * d_alpha / sigma.clamp(min=TINY)

    def time(self, log_snr: Tensor) -> Tensor:
        """Returns the root of b0 t + (b1 - b0) t^2 / 2 = log(1 + e^(-2 lambda))."""
        log_snr = log_snr.double()
        grown = torch.nn.functional.softplus(-2 * log_snr)
        t = 2 * grown / (self.beta_min + (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * grown).sqrt())
        return t.nan_to_num(1.0).clamp(max=1)  # infinite noise is out of range: the end


class VarianceExploding(Path):
    """The path of EDM: alpha = 1, sigma = sigma_max t (Karras et al. 2022, arXiv:2206.00364). t is sigma in units of
    its largest value, so that t is in [0, 1] as on every path; the formula also holds for t > 1."""

    def __init__(self, sigma_max: float = 80.0) -> None:
        if not sigma_max > 0:
            raise ValueError(f"sigma_max={sigma_max} must be positive")
        self.sigma_max = sigma_max

    def input_scale(self, point: Point) -> Any:
        return (point.alpha**2 + point.sigma**2) ** -0.5

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        one = torch.ones_like(t)
        return one, self.sigma_max * t, torch.zeros_like(t), self.sigma_max * one

    def time(self, log_snr: Tensor) -> Tensor:
        """Returns a time above 1 for sigma / alpha above sigma_max."""
        return torch.exp(-log_snr.double()) / self.sigma_max


def linear_betas(steps: int, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """Returns DDPM's betas (Ho et al. 2020, arXiv:2006.11239, section 4), (steps,) float64."""
    return torch.linspace(first, last, steps, dtype=torch.float64)


def scaled_linear_betas(steps: int, first: float = 0.00085, last: float = 0.012) -> Tensor:
    """Returns betas with linear square roots (Rombach et al. 2022; Stable Diffusion 1 and 2), (steps,) float64."""
    return torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2


def cosine_betas(steps: int, offset: float = 0.008, largest: float = 0.999) -> Tensor:
    """Returns betas of the cosine schedule (Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 17), (steps,) float64."""
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    alpha_bar = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=largest)


def zero_terminal_snr(betas: Tensor) -> Tensor:
    """Returns the betas rescaled to zero terminal SNR (Lin et al. 2024, arXiv:2305.08891, algorithm 1)."""
    alphas = (1 - betas.double()).cumprod(0).sqrt()
    alphas = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
    alpha_bar = alphas**2
    return 1 - alpha_bar / torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])


class DiscreteBetas(Path):
    """A chain of T betas as a path: index k of 0..T-1 is at t = (k + 1) / T, and t = 0 is the clean data.

    Between indices alpha is a monotone cubic in t (Fritsch and Carlson 1980), so that the path's velocity is continuous
    and higher-order methods keep their order; sigma = sqrt(1 - alpha^2). Raises ValueError for betas outside (0, 1].
    """

    def __init__(self, betas: Tensor) -> None:
        if betas.dim() != 1 or not bool(((betas > 0) & (betas <= 1)).all()):
            raise ValueError(f"betas of shape {tuple(betas.shape)} must be a vector of values in (0, 1]")
        alphas = (1 - betas.double()).cumprod(0).sqrt()
        self.alphas = torch.cat([torch.ones(1, dtype=torch.float64), alphas])
        self.steps, self.first = len(betas), 1 / len(betas)
        rise = self.alphas.diff()  # all negative, so that the harmonic mean of two neighbours is defined
        inner = 2 * rise[1:] * rise[:-1] / (rise[1:] + rise[:-1])
        self.slopes = torch.cat([rise[:1], inner, rise[-1:]])  # of alpha by index, at each index

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        table, slopes = self.alphas.to(t.device), self.slopes.to(t.device)
        place = t.double() * self.steps
        left = place.floor().clamp(0, self.steps - 1).long()
        u = place - left
        rise, start, end = table[left + 1] - table[left], slopes[left], slopes[left + 1]
        # the cubic Hermite polynomial with the values and slopes at both ends: linear part and two corrections
        bend, twist = start - rise, end - rise
        alpha = table[left] + u * (rise + (1 - u) * ((1 - u) * bend - u * twist))
        d_alpha = self.steps * (rise + (1 - u) * (1 - 3 * u) * bend - u * (2 - 3 * u) * twist)
        sigma = (1 - alpha**2).clamp(min=0).sqrt()
        d_sigma = -alpha * d_alpha / sigma.clamp(min=TINY)
        return alpha.to(t.dtype), sigma.to(t.dtype), d_alpha.to(t.dtype), d_sigma.to(t.dtype)
