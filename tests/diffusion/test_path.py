import math

import pytest
import torch

from dit.diffusion.path import DiscreteBetas, Linear, linear_betas

from .conftest import PATHS

TIMES = torch.linspace(0.001, 0.999, 500, dtype=torch.float64)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_log_snr_falls_and_time_inverts_it(path):
    alpha, sigma, *_ = path.coefficients(TIMES)
    log_snr = alpha.log() - sigma.log()
    assert (log_snr.diff() < 0).all()
    torch.testing.assert_close(path.time(log_snr), TIMES, atol=1e-10, rtol=0)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_derivatives_are_those_of_the_coefficients(path):
    t = TIMES[5:-5] + 1e-5  # off the kinks of a discrete path
    h = 1e-7
    alpha1, sigma1, *_ = path.coefficients(t - h)
    alpha2, sigma2, *_ = path.coefficients(t + h)
    _, _, d_alpha, d_sigma = path.coefficients(t)
    torch.testing.assert_close(d_alpha, (alpha2 - alpha1) / (2 * h), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(d_sigma, (sigma2 - sigma1) / (2 * h), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_time_zero_is_clean(path):
    point = path.point(0.0)
    assert (point.alpha, point.sigma) == (1.0, 0.0)
    assert point.log_snr == math.inf


@pytest.mark.parametrize("name", ["cosine", "ddpm_linear", "ddpm_cosine"])
def test_variance_is_preserved(name):
    alpha, sigma, *_ = PATHS[name].coefficients(TIMES)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(TIMES), atol=1e-12, rtol=0)


def test_discrete_index_lies_at_k_plus_one_over_t():
    betas = linear_betas(1000)
    path = DiscreteBetas(betas)
    expected = (1 - betas).cumprod(0).sqrt()
    alpha, *_ = path.coefficients((torch.arange(1000, dtype=torch.float64) + 1) / 1000)
    torch.testing.assert_close(alpha, expected, atol=1e-12, rtol=0)


def test_discrete_betas_agree_with_diffusers():
    from diffusers import DDPMScheduler

    for name, schedule in (("ddpm_linear", "linear"), ("ddpm_cosine", "squaredcos_cap_v2")):
        theirs = DDPMScheduler(num_train_timesteps=1000, beta_schedule=schedule).alphas_cumprod.sqrt()
        torch.testing.assert_close(PATHS[name].alphas[1:].float(), theirs, atol=2e-6, rtol=0)


def test_a_point_of_tensors_broadcasts_and_a_point_of_floats_has_floats():
    t = torch.rand(3, 1, 1, 1)
    assert Linear().point(t).alpha.shape == (3, 1, 1, 1)
    assert isinstance(Linear().point(0.3).sigma, float)


def test_betas_outside_the_unit_interval_are_refused():
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        DiscreteBetas(torch.tensor([0.1, 1.5]))
