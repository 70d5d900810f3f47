import pytest
import torch

from dit.diffusion.denoiser import Denoiser
from dit.diffusion.guidance import ClassifierFree
from dit.diffusion.path import Cosine
from dit.diffusion.prediction import X0, Eps, Flow, V
from dit.types import Condition

PATH = Cosine()
POINT = PATH.point(0.6)
CONDITION = Condition(label=torch.tensor([1.0, 2.0, 3.0]))
NULL = Condition(label=torch.tensor([0.0]))


def clean(x, label):
    """A model of x0 that hears its condition."""
    return torch.tanh(x + label[:, None])


def network(prediction):
    """The same model, answering in another prediction's terms."""

    def answer(x, time, condition):
        x0 = clean(x, condition.label)
        return prediction.target(x0, (x - POINT.alpha * x0) / POINT.sigma, POINT)

    return answer


def guided(prediction, scale, x):
    denoiser = Denoiser(network(prediction), PATH, prediction)
    return ClassifierFree(scale)(denoiser, CONDITION, NULL)(x, POINT), denoiser.rows


def test_scale_one_is_the_conditional_model_at_one_call():
    x = torch.randn(3, 4)
    estimate, rows = guided(X0(), 1.0, x)
    torch.testing.assert_close(estimate.x0, clean(x, CONDITION.label), atol=1e-6, rtol=0)
    assert rows == 3


def test_scale_zero_is_the_null_model_and_two_extrapolates():
    x = torch.randn(3, 4)
    null, cond = clean(x, torch.zeros(3)), clean(x, CONDITION.label)
    torch.testing.assert_close(guided(X0(), 0.0, x)[0].x0, null)
    estimate, rows = guided(X0(), 2.0, x)
    torch.testing.assert_close(estimate.x0, 2 * cond - null)
    assert rows == 6


@pytest.mark.parametrize("prediction", [Eps(), V(), Flow()], ids=["eps", "v", "flow"])
def test_guiding_any_prediction_is_the_same(prediction):
    x = torch.randn(3, 4)
    expected, _ = guided(X0(), 3.0, x)
    estimate, _ = guided(prediction, 3.0, x)
    torch.testing.assert_close(estimate.x0, expected.x0, atol=1e-5, rtol=0)
    torch.testing.assert_close(estimate.eps, expected.eps, atol=1e-5, rtol=0)


def test_negative_scale_is_refused():
    with pytest.raises(ValueError, match="scale=-1"):
        ClassifierFree(-1)
