from functools import partial

import pytest
import torch
from hydra.utils import instantiate

from dit.diffusion import objective as o
from dit.diffusion.objective import Hybrid, Objective, snr, uniform
from dit.diffusion.prediction import EDM, X0, Eps, Flow, LearnedRange, Score, V
from dit.diffusion.time import Uniform
from dit.types import Condition, Draw

from ..parts import found, full_name
from ..waiting import no_waiting_on_cuda
from .conftest import PATHS

PREDICTIONS = {"x0": X0(), "eps": Eps(), "v": V(), "flow": Flow(), "score": Score(), "edm": EDM(0.7)}
CONDITION = Condition(label=torch.zeros(6))
U = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
# A new objective in conf/objective gets the first two laws without a row.
TESTED = {full_name(Hybrid), full_name(Objective)} | {  # tested in files of their own
    "dit.diffusion.flow_map.FlowMap",
    "dit.diffusion.distribution_matching.DistributionMatching",
}
OBJECTIVES = {"mse": Objective} | {
    name: lambda path, prediction, density, node=node: instantiate(
        node, path=path, prediction=prediction, density=density
    )
    for name, node in found("objective", TESTED).items()
}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=PREDICTIONS)
@pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES)
def test_a_network_that_knows_the_answer_has_no_loss(make, path, prediction):
    x0, eps = torch.randn(2, 6, 2, 3, 3)
    point = path.point(U.view(-1, 1, 1, 1)).like(x0)
    seen = {}

    def oracle(x, time, condition):
        seen["x"] = x
        return prediction.target(x0, eps, point)

    losses = make(path, prediction, Uniform())(oracle, Draw(x0, CONDITION, eps, U))
    assert losses.shape == (6,)
    assert losses.dtype == torch.float32
    assert losses.max() < 1e-6
    scaled = prediction.input_scale(point) * (point.alpha * x0 + point.sigma * eps)
    torch.testing.assert_close(seen["x"], scaled)


@pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES)
def test_a_network_in_bf16_has_a_float32_loss(make):
    x0, eps = torch.randn(2, 6, 2, 3, 3)
    losses = make(PATHS["linear"], Flow(), Uniform())(lambda x, t, c: x.bfloat16(), Draw(x0, CONDITION, eps, U))
    assert losses.dtype == torch.float32


WEIGHTINGS = {
    # name: (weighting, what its paper puts before |x0 error|^2, as a function of SNR)
    "min_snr": (o.min_snr, lambda snr: snr.clamp(max=5)),
    "soft_min_snr": (o.soft_min_snr, lambda snr: 4 * snr / (4 + snr)),
    "p2": (o.p2, lambda snr: snr / (1 + snr)),
    "sigmoid": (o.sigmoid, lambda snr: snr * torch.sigmoid(2 - snr.log())),
    "edm": (partial(o.edm, sigma_data=0.7), lambda snr: snr + 1 / 0.49),
}


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("path", [PATHS["linear"], PATHS["vp"], PATHS["edm"]], ids=["linear", "vp", "edm"])
@pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=PREDICTIONS)
def test_a_weighting_weighs_x0_alike_under_every_prediction(name, path, prediction):
    """The same wrong x0, told in any prediction's terms, has the loss that the paper gives it."""
    weighting, of_x0 = WEIGHTINGS[name]
    x0, eps = torch.randn(2, 6, 2, 3, 3, dtype=torch.float64)
    point = path.point(U.view(-1, 1, 1, 1))
    x = point.alpha * x0 + point.sigma * eps
    wrong = x0 + 0.1 * torch.randn_like(x0)
    answer = prediction.target(wrong, (x - point.alpha * wrong) / point.sigma, point)
    made = Objective(path, prediction, Uniform(), weighting).loss(answer, x0, eps, point)
    expected = (of_x0(snr(point)) * (wrong - x0) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(made, expected, rtol=1e-8, atol=0)


def test_edm_weighting_is_uniform_for_the_edm_prediction():
    point = PATHS["edm"].point(U.view(-1, 1, 1, 1))
    weight = o.edm(point, EDM(0.7), sigma_data=0.7)
    torch.testing.assert_close(weight, torch.ones_like(weight))
    assert uniform(point, Eps()) == 1


@pytest.mark.gpu
@pytest.mark.parametrize(("path", "prediction", "make"), [
    (PATHS["linear"], Flow(), partial(Objective, weighting=o.min_snr)), (PATHS["ddpm_linear"], LearnedRange(Eps()), Hybrid),
], ids=["mse", "hybrid"])  # fmt: skip
def test_a_loss_on_a_gpu_is_that_of_the_cpu_and_never_waits(path, prediction, make):
    x0, eps = torch.randn(2, 6, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    objective, outputs = make(path, prediction, Uniform()), prediction.outputs

    def network(x, time, condition):
        return torch.tanh(x + 1e-3 * time[:, None, None, None]).repeat(1, outputs, 1, 1)

    expected = objective(network, Draw(x0, CONDITION, eps, U))
    given = Draw(x0.cuda(), CONDITION.to("cuda"), eps.cuda(), U)
    with no_waiting_on_cuda():
        made = objective(network, given)
    torch.testing.assert_close(made.cpu(), expected, atol=1e-4, rtol=1e-4)
