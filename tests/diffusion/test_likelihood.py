import math
from functools import partial

import pytest
import torch

from dit.diffusion.likelihood import Hutchinson, bits_per_dim, exact_divergence, log_likelihood
from dit.diffusion.prediction import Estimate
from dit.diffusion.time import UniformLogSNR

from .conftest import PATHS

STD = torch.tensor([[0.5, 1.0], [2.0, 0.3]], dtype=torch.float64)
MEAN = torch.tensor([[0.1, -0.4], [0.0, 0.8]], dtype=torch.float64)
X = MEAN + STD * torch.randn(5, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
EXACT = torch.distributions.Normal(MEAN, STD).log_prob(X).sum((1, 2))


def gaussian(x, point, mean=MEAN):
    """The exact denoiser of data N(mean, STD^2)."""
    gain = point.alpha * STD**2 / (point.alpha**2 * STD**2 + point.sigma**2)
    return Estimate.of_x0(x, mean + gain * (x - point.alpha * mean), point)


@pytest.mark.parametrize(("name", "mean"), [("linear", 1), ("trigonometric", 1), ("vp", 0), ("edm", 0)])
def test_a_gaussian_s_likelihood_is_exact(name, mean):
    """To 1e-3 bits an element; where the path ends with some signal left, of data without a mean."""
    path = PATHS[name]
    points = UniformLogSNR(-4.3 if name == "edm" else -5.0, 7.0)(path, 400)
    if mean:
        points = [path.point(1.0), *points]
    made = log_likelihood(partial(gaussian, mean=mean * MEAN), X - MEAN + mean * MEAN, points)
    assert made.dtype == torch.float64
    assert (bits_per_dim(made, 4) - bits_per_dim(EXACT, 4)).abs().max() < 1e-3


def test_hutchinson_is_unbiased_and_exact_for_a_diagonal_slope():
    points = UniformLogSNR(-5.0, 7.0)(PATHS["linear"], 100)
    z = torch.randn(X.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        log_likelihood(gaussian, X, points, Hutchinson(z)), log_likelihood(gaussian, X, points), atol=1e-9, rtol=0
    )
    mixed = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def slope(x):
        return torch.tanh(x.flatten(1) @ mixed).view_as(x)

    _, exact = exact_divergence(slope, X)
    z = torch.randn(4000, *X.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    guesses = torch.stack([Hutchinson(draw)(slope, X)[1] for draw in z])
    assert ((guesses.mean(0) - exact).abs() < 5 * guesses.std(0) / 4000**0.5).all()


def test_bits_of_a_uniform_byte_are_eight():
    """256 levels in [-1, 1], 2 / 255 apart, made continuous: a flat density of 1 / (256 bins) is 8 bits."""
    log_p = torch.tensor([-12 * math.log(256 * 2 / 255)], dtype=torch.float64)
    assert bits_per_dim(log_p, 12, bin_width=2 / 255).item() == pytest.approx(8)
    assert bits_per_dim(torch.zeros(1), 3).item() == 0


def test_too_short_a_grid_is_refused():
    with pytest.raises(ValueError, match="at least 2 steps"):
        log_likelihood(gaussian, X, UniformLogSNR()(PATHS["linear"], 1))
