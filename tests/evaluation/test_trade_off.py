"""The last checkpoint before copying rises, from made-up scores."""

import matplotlib.pyplot as plt
import pytest
import torch

from dit.evaluation.card import Card
from dit.evaluation.results import Results
from dit.evaluation.statistics import interval_of
from dit.evaluation.trade_off import TradeOff, roles_of
from dit.evaluation.trade_off_plot import trade_off_plot
from dit.metrics.nearest_train import NearestTrain
from dit.metrics.prior_drift import PriorDrift
from dit.metrics.prompt_accuracy import PromptAccuracy
from dit.metrics.subject_fidelity import SubjectFidelity

from ..metrics.every import Pixels

METRICS = {
    "subject": SubjectFidelity("dino_i", Pixels()),
    "prompt": PromptAccuracy(lambda images, prompts: {}),
    "copies": NearestTrain("near", Pixels(), split="subject"),
    "drift": PriorDrift("prior_drift", Pixels()),
}
HEADLINES = {"dino_i": True, "prompt_accuracy": True, "near_copies": False, "prior_drift_100": False}
N = 100


def cell(step, copies, run="run", guidance=2.0, scale=None, seed=0):
    """A card and its parts. copies: the number of pictures, or for each picture whether it is a copy."""
    draw = torch.Generator().manual_seed(seed + step)
    parts = {
        "dino_i": 0.5 + step / 1000 + 0.1 * torch.randn(N, generator=draw),
        "prompt_accuracy": torch.rand(N, generator=draw) < 0.8,
        "near_copies": torch.arange(N) < copies if isinstance(copies, int) else copies,
        "prior_drift_100": step / 100 + torch.randn(N, generator=draw),
    }
    scores = {name: float(part.double().mean()) for name, part in parts.items()}
    subject = {"checkpoint": f"{run}/step_{step:07d}.ckpt" if step else f"{run}/base", "step": step, "weights": "ema",
               "sampler": "euler", "grid": "uniform_time", "steps": 16, "guidance": guidance}  # fmt: skip
    subject |= {} if scale is None or not step else {"adapter_scale": scale}
    intervals = {name: interval_of(part, scores[name]) for name, part in parts.items()}
    return Card(subject, {"n": N, "seed": 0}, {}, {"nfe": 32.0, "seconds": 0.1}, scores, intervals), parts


def trade_off(*cells):
    cards, parts = zip(*cells, strict=True)
    results = Results("run", cards, parts, [], [], HEADLINES)
    found = TradeOff.of(results, METRICS)
    assert found is not None
    return found


def test_the_last_checkpoint_before_copying_rises_is_named():
    found = trade_off(cell(0, 0), cell(100, 1), cell(200, 2), cell(300, 30), cell(400, 60))
    assert found.last_good("run").step == 200
    first, second = found.sentences()
    assert first == (
        "The last checkpoint before copying rises is step_0000200: step_0000300 copies more than the base on the same "
        "prompts and noise (95 %, for all cells together): near_copies 0.300 [0.219, 0.396] against 0.000 [0.000, 0.037]."
    )
    assert second.startswith("There: dino_i 0.6")
    assert "prior_drift_100 2" in second


def test_a_later_checkpoint_with_fewer_copies_does_not_count():
    assert trade_off(cell(0, 0), cell(100, 1), cell(200, 40), cell(300, 0)).last_good("run").step == 100


def test_copies_that_the_base_makes_too_are_not_a_rise():
    found = trade_off(cell(0, 40), cell(100, 42), cell(200, 44))
    assert found.risen("run") == []
    assert found.sentences()[0].startswith(
        "Copying does not rise up to the last checkpoint, step_0000200: no cell copies"
    )
    assert found.last_good("run").step == 200


def test_one_setting_that_copies_is_enough():
    cells = [cell(step, copies, guidance=scale) for scale, many in ((1.0, 0), (4.0, 50))
             for step, copies in ((0, 0), (100, 0), (200, many))]  # fmt: skip
    found = trade_off(*cells)
    assert found.last_good("run").step == 100
    assert "step_0000200, guidance 4 copies more than the base" in found.sentences()[0]
    assert found.sentences()[1].startswith("Its highest subject fidelity is that with guidance ")


def test_at_the_first_checkpoint_there_is_none_before():
    found = trade_off(cell(0, 0), cell(100, 50), cell(200, 60))
    assert found.last_good("run") is None
    [sentence] = found.sentences()
    assert sentence.startswith("Copying has risen at the first checkpoint already: step_0000100 copies")


def test_without_a_base_the_first_checkpoint_is_compared_with():
    found = trade_off(cell(100, 5), cell(200, 6), cell(300, 60))
    assert found.last_good("run").step == 200
    assert "step_0000300 copies more than the first checkpoint on the same" in found.sentences()[0]


def test_each_adapter_scale_is_compared_with_the_base_that_samples_alike():
    cells = [
        cell(0, 0),
        *(cell(step, int(step / 5 * scale), scale=scale) for step in (100, 200) for scale in (0.1, 1.0)),
    ]
    found = trade_off(*cells)
    assert len(found.rises) == 4
    assert [point.setting for point in found.risen("run")] == ["adapter scale 1", "adapter scale 1"]
    figure = trade_off_plot(found)
    assert [axes.get_title() for axes in figure.axes[1:]] == [found.score(role).title for role in ("copies", "drift")]
    plt.close(figure)


def test_equal_copy_rates_rarely_count_as_a_rise():
    """Of 200 runs of 8 checkpoints whose pictures are copies with the base's probability, at most 5 % rise, up to the
    error of 200 runs."""
    draw, risen = torch.Generator().manual_seed(0), 0
    for _ in range(200):
        cells = [cell(100 * step, torch.rand(N, generator=draw) < 0.1) for step in range(9)]
        risen += bool(trade_off(*cells).risen("run"))
    assert risen / 200 < 0.09


@pytest.mark.parametrize("missing", ["subject", "prompt", "copies"])
def test_there_is_no_trade_off_without_one_of_its_sides(missing):
    cards, parts = zip(cell(0, 0), cell(100, 0), strict=True)
    metrics = {role: metric for role, metric in METRICS.items() if role != missing}
    assert TradeOff.of(Results("run", cards, parts, [], [], HEADLINES), metrics) is None


def test_the_first_metric_of_a_role_has_it():
    roles = {"subject": "dino_i", "prompt": "prompt_accuracy", "copies": "near_copies", "drift": "prior_drift_100"}
    assert roles_of(METRICS, list(HEADLINES)) == roles
    twice = {**METRICS, "more": SubjectFidelity("clip_i", Pixels())}
    assert roles_of(twice, ["clip_i", *HEADLINES])["subject"] == "dino_i"
