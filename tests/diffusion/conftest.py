"""An analytic problem: a Gaussian mixture, whose exact denoiser is known on every path."""

import pytest
import torch

from dit.diffusion.path import (
    VP,
    Cosine,
    DiscreteBetas,
    Linear,
    VarianceExploding,
    cosine_betas,
    linear_betas,
    scaled_linear_betas,
    zero_terminal_snr,
)
from dit.diffusion.prediction import Estimate

PATHS = {
    "linear": Linear(),
    "trigonometric": Cosine(),
    "cosine": Cosine(0.008),
    "vp": VP(),
    "edm": VarianceExploding(),
    "ddpm_linear": DiscreteBetas(linear_betas(1000)),
    "ddpm_scaled_linear": DiscreteBetas(scaled_linear_betas(1000)),
    "ddpm_cosine": DiscreteBetas(cosine_betas(1000)),
    "ddpm_zero_snr": DiscreteBetas(zero_terminal_snr(scaled_linear_betas(1000))),
}


class Mixture:
    """Two Gaussians in the plane; `denoise` is the exact posterior mean E[x0 | x_t], in float64."""

    means = torch.tensor([[1.5, 0.5], [-1.0, -0.7]], dtype=torch.float64)
    stds = torch.tensor([0.4, 0.6], dtype=torch.float64)
    weights = torch.tensor([0.35, 0.65], dtype=torch.float64)

    def __init__(self):
        self.calls = 0

    def denoise(self, x, point):
        self.calls += 1
        variance = point.alpha**2 * self.stds**2 + point.sigma**2  # (K,)
        off = x[:, None] - point.alpha * self.means  # (N, K, 2)
        log_p = self.weights.log() - off.square().sum(-1) / (2 * variance) - variance.log()
        share = log_p.softmax(1)[..., None]
        x0 = self.means + (point.alpha * self.stds**2 / variance)[:, None] * off
        x0 = (share * x0).sum(1)
        if point.sigma == 0:
            return Estimate(x0=x / point.alpha, eps=torch.zeros_like(x))
        return Estimate(x0=x0, eps=(x - point.alpha * x0) / point.sigma)


@pytest.fixture
def mixture():
    return Mixture()


@pytest.fixture
def start():
    return torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
