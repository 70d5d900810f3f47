import pytest
import torch

from dit.diffusion.prediction import X0, Eps, Flow, V

from .conftest import PATHS

PREDICTIONS = {"x0": X0(), "eps": Eps(), "v": V(), "flow": Flow()}


@pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=PREDICTIONS)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_target_and_estimate_are_inverse(path, prediction, t):
    x0, eps = torch.randn(2, 8, 3, dtype=torch.float64)
    point = path.point(t)
    x = point.alpha * x0 + point.sigma * eps
    estimate = prediction.estimate(x, prediction.target(x0, eps, point), point)
    torch.testing.assert_close(estimate.x0, x0, atol=1e-11, rtol=0)
    torch.testing.assert_close(estimate.eps, eps, atol=1e-11, rtol=0)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_flow_target_is_the_velocity_of_the_path(path):
    x0, eps = torch.randn(2, 5, dtype=torch.float64)
    t, h = 0.35005, 1e-6
    ahead, behind = path.point(t + h), path.point(t - h)
    velocity = ((ahead.alpha - behind.alpha) * x0 + (ahead.sigma - behind.sigma) * eps) / (2 * h)
    torch.testing.assert_close(Flow().target(x0, eps, path.point(t)), velocity, atol=1e-6, rtol=1e-6)


def test_v_and_flow_work_from_pure_noise_where_eps_cannot():
    x, y = torch.randn(2, 4, dtype=torch.float64)
    point = PATHS["linear"].point(1.0)
    torch.testing.assert_close(Flow().estimate(x, y, point).x0, x - y)
    torch.testing.assert_close(V().estimate(x, y, point).x0, -y)
    with pytest.raises(ValueError, match="Eps prediction"):
        Eps().estimate(x, y, point)


def test_estimates_stay_in_float32_under_a_bf16_network():
    from dit.diffusion.denoiser import Denoiser
    from dit.types import Condition

    denoiser = Denoiser(lambda x, time, condition: x.bfloat16(), PATHS["linear"], Flow())
    estimate = denoiser(torch.randn(2, 3), PATHS["linear"].point(0.5), Condition(label=torch.zeros(2)))
    assert estimate.x0.dtype == estimate.eps.dtype == torch.float32
    assert denoiser.rows == 2
