"""Points with a time for each sample: everything is, row by row, what it is at one time for all."""

from functools import partial

import pytest
import torch

from dit.diffusion.denoiser import Denoiser
from dit.diffusion.editing import renoise
from dit.diffusion.guidance import AdaptiveProjected, Auto, CfgPlusPlus, ClassifierFree, Interval, Rescaled
from dit.diffusion.noise import Noise
from dit.diffusion.path import ancestral_stds
from dit.diffusion.prediction import EDM, X0, Eps, Flow, LearnedRange, Score, V
from dit.diffusion.sampler.transition import transition
from dit.types import Condition

from .conftest import PATHS

PREDICTIONS = {
    "x0": X0(), "eps": Eps(), "v": V(), "flow": Flow(), "score": Score(), "edm": EDM(0.7), "range": LearnedRange(Eps()),
}  # fmt: skip
HERE, THERE = torch.tensor([[0.9, 0.5, 0.25, 0.7], [0.6, 0.4, 0.125, 0.1]], dtype=torch.float64)
CONDITION, NULL = Condition(label=torch.arange(4)), Condition(label=torch.tensor([9]))
SHAPE = (2, 3, 3)


def network(x, time, condition, outputs=1):
    """Every row's output depends on its time and its condition."""
    shift = (1e-3 * time + 0.1 * condition.label).view(-1, 1, 1, 1)
    return torch.tanh(x + shift).repeat(1, outputs, 1, 1)


def denoiser(path, prediction):
    return Denoiser(partial(network, outputs=prediction.outputs), path, prediction)


def assert_rows(make, x):
    """make(x, here, there, condition, rows) for all rows is that of each row by itself, at floats."""
    whole = make(x, HERE, THERE, CONDITION, slice(None))
    for row in range(len(x)):
        rows = slice(row, row + 1)
        alone = make(x[rows], float(HERE[row]), float(THERE[row]), CONDITION[rows], rows)
        torch.testing.assert_close(whole[rows], alone, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=PREDICTIONS)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_an_estimate(path, prediction):
    def make(x, here, there, condition, rows):
        estimate = denoiser(path, prediction)(x, path.point(here), condition)
        score = estimate.score(path.point(here))
        return torch.cat([estimate.x0, estimate.eps, score], dim=1)

    assert_rows(make, torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("fresh", [0.0, 0.5, 1.0])
def test_a_transition_with_its_noise(path, fresh):
    def make(x, here, there, condition, rows):
        here, there = path.point(here), path.point(there)
        noise = Noise([3, 1, 4, 1][rows], SHAPE)
        estimate = denoiser(path, Flow())(x, here, condition)
        down = transition(estimate, here, there, fresh * ancestral_stds(here, there)[0], noise)
        return torch.cat([down, renoise(down, there, here, noise(there, here))], dim=1)

    assert_rows(make, torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0)))


GUIDANCES = {
    "cfg": ClassifierFree(3.0),
    "channels": ClassifierFree(3.0, channels=1),
    "interval of t": Interval(3.0, 0.3, 0.8, "t"),
    "interval of log-SNR": Interval(3.0),
    "rescaled": Rescaled(3.0),
    "apg": AdaptiveProjected(3.0),
    "cfg++": CfgPlusPlus(0.6),
    "auto": Auto(partial(network), 2.0),
}


@pytest.mark.parametrize("guidance", GUIDANCES.values(), ids=GUIDANCES)
def test_guidance(guidance):
    path = PATHS["linear"]

    def make(x, here, there, condition, rows):
        estimate = guidance(denoiser(path, Flow()), condition, NULL)(x, path.point(here))
        return torch.cat([estimate.x0, estimate.eps], dim=1)

    assert_rows(make, torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0)))


def test_one_time_where_x0_is_not_determined_is_named():
    path = PATHS["linear"]
    with pytest.raises(ValueError, match="Eps prediction does not determine x0 at t=1"):
        denoiser(path, Eps())(
            torch.randn(2, *SHAPE), path.point(torch.tensor([0.5, 1.0], dtype=torch.float64)), CONDITION[:2]
        )
