import math

import numpy as np
import pytest
import torch

from dit.diffusion.path import Linear, VarianceExploding
from dit.diffusion.time import (
    AlignYourSteps,
    CosMap,
    Karras,
    Leading,
    Linspace,
    LogitNormal,
    LogNormalSigma,
    Mode,
    Respaced,
    ShiftedDensity,
    ShiftedGrid,
    Trailing,
    Uniform,
    UniformIndex,
    UniformLogSNR,
    UniformTime,
    exponential,
    points_at,
)

from .conftest import PATHS

AYS = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]
DENSITIES = {
    "uniform": Uniform(),
    "uniform_index": UniformIndex(),
    "logit_normal": LogitNormal(),
    "logit_normal_noisier": LogitNormal(-0.5, 1.4),
    "mode": Mode(),
    "mode_ends": Mode(-0.8),
    "cosmap": CosMap(),
    "log_normal_sigma": LogNormalSigma(),
    "shifted": ShiftedDensity(LogitNormal(), 3.0),
}
GRIDS = {
    "uniform_time": UniformTime(),
    "uniform_time_start": UniformTime(0.9),
    "uniform_log_snr": UniformLogSNR(-2.5, 3.4),
    "karras": Karras(0.03, 10),
    "align_your_steps": AlignYourSteps(AYS),
    "leading": Leading(),
    "leading_offset": Leading(offset=1),
    "trailing": Trailing(),
    "linspace": Linspace(),
    "respaced": Respaced(),
    "shifted": ShiftedGrid(UniformTime(0.9), 1.5),
}
EVERY = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000


@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_density_is_an_increasing_map_of_the_unit_interval(density, path):
    t = density(path, EVERY[::100])
    assert t.dtype == torch.float64
    assert 0 < t.min() < t.max()
    assert t.max() <= 1 or isinstance(path, VarianceExploding)  # whose noise has no largest value
    assert (t.diff() >= 0).all()


def test_logit_normal_has_the_moments_of_its_logit():
    logit = LogitNormal(-0.5, 1.4)(Linear(), EVERY).logit()
    assert logit.mean() == pytest.approx(-0.5, abs=1e-3)
    assert logit.std() == pytest.approx(1.4, abs=2e-3)


@pytest.mark.parametrize("path", [Linear(), VarianceExploding(), PATHS["vp"]], ids=["linear", "edm", "vp"])
def test_log_normal_sigma_has_the_moments_of_its_logarithm_on_any_path(path):
    log_snr = [path.point(t).log_snr for t in LogNormalSigma()(path, EVERY[::50] + 24.5e-5).tolist()]
    assert np.mean(log_snr) == pytest.approx(1.2, abs=2e-3)
    assert np.std(log_snr) == pytest.approx(1.2, abs=4e-3)


def test_cosmap_gives_the_linear_path_the_log_snr_of_the_cosine():
    u = EVERY[1000:-1000:100]
    for t, angle in zip(CosMap()(Linear(), u).tolist(), (math.pi / 2 * u).tolist(), strict=True):
        assert Linear().point(t).log_snr == pytest.approx(-math.log(math.tan(angle)), abs=1e-9)


def test_mode_is_the_paper_s_map_and_favours_the_middle():
    """Esser et al. 2024, eq. 20, at the quantiles of its falling argument."""
    u, s = EVERY[::1000], 0.8
    paper = 1 - (1 - u) - s * (torch.cos(math.pi / 2 * (1 - u)) ** 2 - 1 + (1 - u))
    torch.testing.assert_close(Mode(s)(Linear(), u), paper)
    share = [((Mode(s)(Linear(), EVERY) - 0.5).abs() < 0.25).double().mean() for s in (-0.8, 0.0, 0.8)]
    assert share[0] < share[1] < share[2]


def test_uniform_index_meets_every_index_of_a_chain_equally():
    t = UniformIndex(10)(Linear(), (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000)
    values, counts = t.unique(return_counts=True)
    torch.testing.assert_close(values, torch.arange(1, 11, dtype=torch.float64) / 10)
    assert (counts == 100).all()


def test_a_density_outside_its_bounds_is_refused():
    with pytest.raises(ValueError, match=r"scale=2\.5"):
        Mode(2.5)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("steps", [2, 33])
def test_a_grid_descends_to_clean_data(grid, path, steps):
    points = grid(path, steps)
    times = [p.t for p in points]
    assert len(points) == steps + 1
    assert times == sorted(set(times), reverse=True)
    assert points[-1].sigma == 0


@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps_are_refused(steps):
    with pytest.raises(ValueError, match=f"steps={steps}"):
        UniformTime()(Linear(), steps)


def test_a_grid_that_does_not_descend_is_refused():
    with pytest.raises(ValueError, match=r"does not descend"):
        points_at(Linear(), torch.tensor([1.0, 0.5, 0.5, 0.0]))


@pytest.mark.parametrize(
    "grid", [UniformTime(), UniformLogSNR(-4), Karras(0.03, 10), Leading(), Trailing(), Respaced()]
)
def test_one_step_is_a_grid(grid):
    assert len(grid(PATHS["ddpm_linear"], 1)) == 2


@pytest.mark.parametrize("grid", [Leading(), Leading(offset=1), Trailing(), Respaced(), Linspace()])
def test_one_step_of_a_chain_starts_at_its_noisy_end(grid):
    """The formulas of leading and respaced would give the index 0 of almost clean data, and sample from noise there."""
    assert [point.t for point in grid(PATHS["ddpm_linear"], 1)] == [1, 0]


def test_log_snr_and_sigma_fall_on_the_grid_that_was_asked_for():
    points = UniformLogSNR(-4, 3)(Linear(), 8)
    np.testing.assert_allclose([p.log_snr for p in points[:-1]], np.linspace(-4, 3, 8), atol=1e-9)
    sigma = [p.sigma / p.alpha for p in Karras(0.03, 10, 7)(PATHS["vp"], 8)[:-1]]
    np.testing.assert_allclose(np.array(sigma) ** (1 / 7), np.linspace(10 ** (1 / 7), 0.03 ** (1 / 7), 8), atol=1e-8)


@pytest.mark.parametrize("steps", [10, 15, 30])
@pytest.mark.parametrize(("grid", "spacing", "offset"), [
    (Leading(), "leading", 0), (Leading(offset=1), "leading", 1), (Trailing(), "trailing", 0), (Respaced(), "linspace", 0),
])  # fmt: skip
def test_spaced_indices_are_those_of_diffusers(grid, spacing, offset, steps):
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(timestep_spacing=spacing, steps_offset=offset)
    theirs.set_timesteps(steps)
    assert grid.indices(steps).tolist() == theirs.timesteps.tolist()


@pytest.mark.parametrize("steps", [10, 15, 30])
def test_linspace_is_that_of_dpm_solver(steps):
    """Pitfall: n + 1 indices, of which the last is dropped."""
    from diffusers import DPMSolverMultistepScheduler

    theirs = DPMSolverMultistepScheduler(timestep_spacing="linspace")
    theirs.set_timesteps(steps)
    assert Linspace().indices(steps).tolist() == theirs.timesteps.tolist()


def test_the_embedded_align_your_steps_table_is_the_published_one():
    from diffusers.schedulers import AysSchedules

    theirs = AysSchedules["StableDiffusionSigmas"]
    assert theirs[:-1] == pytest.approx(AYS[:-1], abs=1e-3)
    points = AlignYourSteps(AYS)(PATHS["ddpm_scaled_linear"], 10)
    assert [p.sigma / p.alpha for p in points[:-1]] == pytest.approx(AYS[:-1], rel=1e-4)
    assert points[-1].sigma == 0


def test_align_your_steps_is_interpolated_geometrically():
    points = AlignYourSteps([8.0, 2.0, 0.5])(Linear(), 4)
    assert [p.sigma / p.alpha for p in points] == pytest.approx([8, 4, 2, 1, 0], abs=1e-9)


def test_a_shifted_grid_is_shifted_once():
    """Pitfall: diffusers' flow matching shifts its default grid twice."""
    points = ShiftedGrid(UniformTime(), 3.0)(Linear(), 4)
    assert [p.t for p in points] == pytest.approx([3 * t / (1 + 2 * t) for t in (1, 0.75, 0.5, 0.25, 0)], abs=1e-12)


@pytest.mark.parametrize(("make", "fault"), [
    (lambda: Karras(1, 0.5), "sigma_min=1"), (lambda: Karras(rho=0), "rho=0"), (lambda: AlignYourSteps([1, 2]), "descending"),
    (lambda: UniformLogSNR(1, 0), "lowest=1"), (lambda: UniformTime(0), "start=0"),
    (lambda: Leading(10)(Linear(), 11), "steps=11 is more than the 10"),
    (lambda: Karras(0.002)(PATHS["ddpm_linear"], 5), r"below the chain's first index at t=0.001, where sigma / alpha=0.01"),
    (lambda: UniformTime()(PATHS["ddpm_linear"], 2000), "below the chain's first index"),
    (lambda: Leading(offset=1)(PATHS["ddpm_linear"], 1000), "reaches index 1000 of 1000"),
    (lambda: exponential(1, 0.5), "sigma_min=1"),
    (lambda: Karras(0.02, 300)(PATHS["ddpm_linear"], 5), r"the path ends at -5.059 \(157.4\)"),
])  # fmt: skip
def test_bad_grids_are_refused(make, fault):
    with pytest.raises(ValueError, match=fault):
        make()
