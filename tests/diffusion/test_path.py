import math

import pytest
import torch

from dit.diffusion.path import VP, Cosine, DiscreteBetas, Linear, VarianceExploding, linear_betas

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
    t = TIMES[5:-5] + 1e-5
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


@pytest.mark.parametrize("name", sorted(set(PATHS) - {"linear", "edm"}))
def test_variance_is_preserved(name):
    alpha, sigma, *_ = PATHS[name].coefficients(TIMES)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(TIMES), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", [n for n in PATHS if n.startswith("ddpm")])
def test_between_the_indices_of_a_chain_the_velocity_is_continuous_and_alpha_falls(name):
    path = PATHS[name]
    knots = torch.arange(1, 1000, dtype=torch.float64) / 1000
    before, after = (path.coefficients(knots + h)[2] for h in (-1e-9, 1e-9))
    torch.testing.assert_close(before, after, atol=1e-4, rtol=0)
    alpha, *_ = path.coefficients(torch.linspace(0, 1, 20_001, dtype=torch.float64))
    assert (alpha.diff() < 0).all()


@pytest.mark.parametrize("offset", [0.0, 0.008, 0.997])
def test_the_cosine_is_exact_at_both_ends(offset):
    clean, noise = Cosine(offset).point(0.0), Cosine(offset).point(1.0)
    assert (clean.alpha, clean.sigma, noise.alpha, noise.sigma) == (1, 0, 0, 1)


def test_discrete_index_lies_at_k_plus_one_over_t():
    betas = linear_betas(1000)
    path = DiscreteBetas(betas)
    expected = (1 - betas).cumprod(0).sqrt()
    alpha, *_ = path.coefficients((torch.arange(1000, dtype=torch.float64) + 1) / 1000)
    torch.testing.assert_close(alpha, expected, atol=1e-12, rtol=0)


def test_discrete_betas_agree_with_diffusers():
    from diffusers import DDPMScheduler

    scaled = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    for name, options in {
        "ddpm_linear": {"beta_schedule": "linear"},
        "ddpm_cosine": {"beta_schedule": "squaredcos_cap_v2"},
        "ddpm_scaled_linear": scaled,
        "ddpm_zero_snr": scaled | {"rescale_betas_zero_snr": True},
    }.items():
        theirs = DDPMScheduler(num_train_timesteps=1000, **options).alphas_cumprod.sqrt()
        torch.testing.assert_close(PATHS[name].alphas[1:].float(), theirs, atol=4e-6, rtol=0)


def test_zero_terminal_snr_ends_in_pure_noise():
    assert PATHS["ddpm_scaled_linear"].point(1.0).alpha > 0.05
    assert PATHS["ddpm_zero_snr"].point(1.0).alpha == 0


def test_vp_is_the_limit_of_ddpm_betas():
    """1000 betas from 0.1 / 1000 to 20 / 1000 are the SDE with rates 0.1 to 20, up to the size of a step."""
    t = TIMES[20:]
    chain, sde = (PATHS[name].coefficients(t)[0] for name in ("ddpm_linear", "vp"))
    assert (chain - sde).abs().max() < 5e-3


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_a_shift_lowers_the_log_snr(path, factor):
    t = torch.linspace(0.2, 0.7, 50, dtype=torch.float64)
    for before, after in zip(t, path.shifted(t, factor), strict=True):
        moved = path.point(float(after)).log_snr - path.point(float(before)).log_snr
        assert moved == pytest.approx(-math.log(factor), abs=1e-9)


def test_the_shift_of_the_linear_path_is_that_of_stable_diffusion_3():
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(Linear().shifted(t, 3.0), 3 * t / (1 + 2 * t), atol=1e-12, rtol=0)


def test_a_point_of_tensors_broadcasts_and_a_point_of_floats_has_floats():
    t = torch.rand(3, 1, 1, 1)
    assert Linear().point(t).alpha.shape == (3, 1, 1, 1)
    assert isinstance(Linear().point(0.3).sigma, float)


@pytest.mark.parametrize(("make", "fault"), [
    (lambda: Cosine(-0.1), "offset=-0.1"), (lambda: VP(2, 1), "beta_min=2"), (lambda: VarianceExploding(0), "sigma_max=0"),
    (lambda: Linear().shifted(TIMES, 0), "shift=0"),
])  # fmt: skip
def test_bad_paths_are_refused(make, fault):
    with pytest.raises(ValueError, match=fault):
        make()


def test_betas_outside_the_unit_interval_are_refused():
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        DiscreteBetas(torch.tensor([0.1, 1.5]))
