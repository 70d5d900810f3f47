import pytest
import torch

from dit.diffusion.noise import Noise, generator
from dit.diffusion.objective import Objective
from dit.diffusion.prediction import X0, Eps, Flow, V
from dit.diffusion.time import Uniform
from dit.types import Condition

from .conftest import PATHS


def test_noise_is_the_same_in_any_batch():
    together = Noise([5, 6, 7], (3, 4))
    for row, seed in enumerate([5, 6, 7]):
        for draw in (0, 4):
            assert torch.equal(together(draw)[row], Noise([seed], (3, 4))(draw)[0])


def test_noise_differs_by_seed_and_by_draw():
    noise = Noise([1, 2], (1000,))
    assert abs(torch.corrcoef(torch.cat([noise(0), noise(1)])) - torch.eye(4)).max() < 0.1


def test_keys_are_not_confused():
    first = [torch.rand(1, generator=generator(*keys)).item() for keys in [(1, 23), (12, 3), (123,), (1, 2, 3)]]
    assert len(set(first)) == 4


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("prediction", [X0(), Eps(), V(), Flow()], ids=["x0", "eps", "v", "flow"])
def test_a_network_that_knows_the_answer_has_no_loss(path, prediction):
    x0, eps = torch.randn(2, 6, 2, 3, 3)
    u = torch.linspace(0.1, 0.9, 6)
    seen = {}

    def oracle(x, time, condition):
        point = path.point(time.view(-1, 1, 1, 1) / 1000)
        seen["x"] = x
        return prediction.target(x0, eps, point)

    condition = Condition(label=torch.zeros(6))
    objective = Objective(path, prediction, Uniform())
    assert objective(oracle, x0, condition, eps, u).shape == (6,)
    assert objective(oracle, x0, condition, eps, u).max() < 1e-6
    point = path.point(u.view(-1, 1, 1, 1))
    torch.testing.assert_close(seen["x"], point.alpha * x0 + point.sigma * eps)


def test_the_weighting_scales_each_sample():
    x0, eps = torch.randn(2, 3, 4, 2, 2)
    u = torch.tensor([0.2, 0.5, 0.8])
    args = (lambda x, time, c: torch.zeros_like(x), x0, Condition(label=torch.zeros(3)), eps, u)
    plain = Objective(PATHS["linear"], Flow(), Uniform())(*args)
    weighted = Objective(PATHS["linear"], Flow(), Uniform(), weighting=lambda p: p.t)(*args)
    torch.testing.assert_close(weighted, plain * u)
