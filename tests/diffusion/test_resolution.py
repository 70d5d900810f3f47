"""The shift by resolution: the published formulas, and the same shift in training and sampling."""

import math

import pytest
import torch

from dit.diffusion.path import Linear
from dit.diffusion.resolution import (
    EmpiricalGrid,
    ResolutionDensity,
    ResolutionGrid,
    at_shape,
    empirical_shift,
    exponential_shift,
    sqrt_shift,
)
from dit.diffusion.time import LogitNormal, ShiftedGrid, UniformTime

PATH = Linear()
U = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)


def test_the_square_root_rule_is_that_of_stable_diffusion_3():
    """t' = a t / (1 + (a - 1) t) with a = sqrt(m / n) (Esser et al. 2024, eq. 23)."""
    factor = sqrt_shift(4096, base=1024)
    assert factor == 2
    torch.testing.assert_close(PATH.shifted(U, factor), factor * U / (1 + (factor - 1) * U))


@pytest.mark.parametrize("tokens", [256, 1024, 4096])
def test_the_exponential_rule_is_that_of_flux(tokens):
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    assert exponential_shift(4 * tokens) == pytest.approx(math.exp(calculate_shift(tokens)))


@pytest.mark.parametrize("tokens", [256, 4096, 4300, 4301, 9000])
@pytest.mark.parametrize("steps", [4, 10, 50, 200])
def test_the_empirical_rule_is_that_of_flux_2(tokens, steps):
    from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

    assert empirical_shift(tokens, steps) == pytest.approx(math.exp(compute_empirical_mu(tokens, steps)))
    shape = (128, tokens, 1)
    grid = at_shape(EmpiricalGrid(UniformTime()), shape)(PATH, steps)
    expected = ShiftedGrid(UniformTime(), empirical_shift(tokens, steps))(PATH, steps)
    assert [point.t for point in grid] == [point.t for point in expected]


def test_training_and_sampling_shift_alike():
    shape = (4, 64, 48)
    grid = at_shape(ResolutionGrid(UniformTime(), sqrt_shift), shape)(PATH, 10)
    times = torch.tensor([point.t for point in UniformTime()(PATH, 10)], dtype=torch.float64)
    expected = PATH.shifted(times, math.sqrt(64 * 48 / 1024))
    torch.testing.assert_close(torch.tensor([point.t for point in grid], dtype=torch.float64), expected)
    density = at_shape(ResolutionDensity(LogitNormal(), sqrt_shift), shape)
    torch.testing.assert_close(density(PATH, U), PATH.shifted(LogitNormal()(PATH, U), math.sqrt(64 * 48 / 1024)))


def test_other_parts_do_not_depend_on_the_shape():
    grid = UniformTime()
    assert at_shape(grid, (4, 8, 8)) is grid


def test_a_shift_without_a_shape_is_refused():
    with pytest.raises(ValueError, match="needs the shape of the latents"):
        ResolutionGrid(UniformTime(), sqrt_shift)(PATH, 4)
