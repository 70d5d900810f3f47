import pytest
import torch

from dit.diffusion.path import Linear
from dit.diffusion.time import LogitNormal, Uniform, UniformLogSNR, UniformTime, points_at

from .conftest import PATHS

DENSITIES = {
    "uniform": Uniform(),
    "logit_normal": LogitNormal(),
    "logit_normal_shifted": LogitNormal(-0.5, 1.4),
}
GRIDS = {
    "uniform_time": UniformTime(),
    "uniform_time_start": UniformTime(0.9),
    "uniform_log_snr": UniformLogSNR(),
}


@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES)
def test_a_density_is_an_increasing_map_of_the_unit_interval(density):
    u = torch.linspace(1e-5, 1 - 1e-5, 1001)
    t = density(u)
    assert t.dtype == u.dtype
    assert 0 < t.min() < t.max() < 1
    assert (t.diff() >= 0).all()


def test_logit_normal_has_the_moments_of_its_logit():
    logit = LogitNormal(-0.5, 1.4)((torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000).logit()
    torch.testing.assert_close(logit.mean(), torch.tensor(-0.5).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(logit.std(), torch.tensor(1.4).double(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("steps", [1, 2, 33])
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
    with pytest.raises(ValueError, match="does not descend"):
        points_at(Linear(), torch.tensor([1.0, 0.5, 0.5, 0.0]))
