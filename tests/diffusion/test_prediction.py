import pytest
import torch

from dit.diffusion.prediction import EDM, X0, Eps, Estimate, Flow, LearnedRange, Score, V, timestep

from .conftest import PATHS

PREDICTIONS = {"x0": X0(), "eps": Eps(), "v": V(), "flow": Flow(), "score": Score(), "edm": EDM(0.7)}


@pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=PREDICTIONS)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_target_and_estimate_are_inverse(path, prediction, t):
    x0, eps = torch.randn(2, 8, 3, dtype=torch.float64)
    point = path.point(t)
    x = point.alpha * x0 + point.sigma * eps
    estimate = prediction.estimate(x, prediction.target(x0, eps, point), point)
    scale = max(1.0, point.sigma / point.alpha)  # a noise 72 times the data leaves two digits fewer of x0
    torch.testing.assert_close(estimate.x0, x0, atol=1e-13 * scale**2, rtol=0)
    torch.testing.assert_close(estimate.eps, eps, atol=1e-13 * scale, rtol=0)


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


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("t", [0.03, 0.5, 0.97])
def test_edm_has_inputs_and_targets_of_unit_variance(path, t):
    """On data of variance sigma_data^2 (Karras et al. 2022, eq. 114 and 117)."""
    prediction, point = EDM(0.5), path.point(t)
    a, b = prediction.weights(point)
    assert prediction.input_scale(point) ** 2 * (0.25 * point.alpha**2 + point.sigma**2) == pytest.approx(1)
    assert 0.25 * a**2 + b**2 == pytest.approx(1)


def test_a_learned_range_splits_the_answer():
    path, x, y = PATHS["ddpm_linear"], *torch.randn(2, 2, 3, 4, 4)
    var_logit = torch.rand_like(y)
    point = path.point(0.4)
    estimate = LearnedRange(Eps()).estimate(x, torch.cat([y, var_logit], 1), point)
    torch.testing.assert_close(estimate.eps, y)
    assert torch.equal(estimate.var_logit, var_logit)
    with pytest.raises(ValueError, match="6 output channels for 3 input channels, not 3"):
        LearnedRange(Eps()).estimate(x, y, point)


def test_the_network_gets_scaled_inputs_and_time():
    from dit.types import Condition

    seen = []
    x, condition = torch.full((2, 1, 1, 1), 3.0), Condition(label=torch.zeros(2))

    def network(x, time, condition):
        seen.append((float(x.flatten()[0]), time.tolist()))
        return x

    path = PATHS["edm"]
    point = path.point(0.05)  # sigma = 4
    for prediction in (Eps(), Eps(c_noise=timestep), EDM(1.0)):
        prediction.call_network(network, x, point, condition)
        prediction.call_network(network, x, path.point(torch.full((2, 1, 1, 1), 0.05)), condition)
    log_sigma, scaled = torch.tensor(4.0).log().item() / 4, 3 / 17**0.5  # the exploding path scales for all
    for (got_x, got_time), want_time in zip(seen, [50] * 2 + [49] * 2 + [log_sigma] * 2, strict=True):
        assert got_x == pytest.approx(scaled)
        assert got_time == pytest.approx([want_time] * 2)


def test_the_score_points_back_along_the_noise():
    """For data N(0, 1) the score of p_t is -x / (alpha^2 + sigma^2)."""
    point, x = PATHS["linear"].point(0.4), torch.randn(5, dtype=torch.float64)
    variance = point.alpha**2 + point.sigma**2
    estimate = Estimate(point.alpha / variance * x, point.sigma / variance * x)
    torch.testing.assert_close(estimate.score(point), -x / variance)
