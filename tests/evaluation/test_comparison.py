"""Differences to the first result: their signs, their confidence, and their verdicts."""

import math

import pytest
import torch

from dit.evaluation.card import Card
from dit.evaluation.comparison import Difference, Result, protocol_differences, score_differences
from dit.evaluation.side_by_side import verdict_text
from dit.evaluation.statistics import corrected, paired, text_with_interval, unpaired

N = 200
BETTER = {"accuracy": True, "fd": False}


def result(shift, seed=0, luck=0, **protocol):
    """accuracy rises and fd falls with the shift; `odd` rises too, and nobody knows whether that is good."""
    skill = torch.randn(N, generator=torch.Generator().manual_seed(luck), dtype=torch.float64)
    each = {"accuracy": skill + shift > 0, "fd": 5 - skill - shift, "odd": skill + shift}
    scores = {name: float(part.double().mean()) for name, part in each.items()}
    return Result(None, Card({}, {"n": N, "seed": seed, "prompts_sha256": "a", **protocol}, {}, {}, scores), each)


@pytest.mark.parametrize("seed", [0, 1], ids=["paired", "unpaired"])
def test_a_difference_is_the_other_minus_the_first(seed):
    first, worse, better = result(1.0), result(0.0, seed, luck=seed), result(2.0, seed, luck=seed)
    rows = score_differences(first, [worse, better], ["accuracy", "fd", "odd"], BETTER)
    assert [{name: d.verdict for name, d in row.items()} for row in rows] == [
        {"accuracy": "worse", "fd": "worse", "odd": "lower"}, {"accuracy": "better", "fd": "better", "odd": "higher"},
    ]  # fmt: skip
    for other, row in zip((worse, better), rows, strict=True):
        for name, difference in row.items():
            assert difference.value == pytest.approx(other.card.scores[name] - first.card.scores[name])
            low, high = difference.interval
            assert low - 1e-9 <= difference.value <= high + 1e-9


@pytest.mark.parametrize("columns", [["fd"], ["accuracy", "fd", "odd"]])
def test_all_intervals_together_hold_with_95_percent(columns):
    first, others = result(0.0), [result(0.1), result(0.2, seed=1, luck=1)]
    rows, confidence = score_differences(first, others, columns, BETTER), corrected(2 * len(columns))
    for name in columns:
        assert rows[0][name].interval == paired(first.parts[name], [others[0].parts[name]], confidence)[0]
        assert rows[1][name].interval == unpaired(first.parts[name], others[1].parts[name], confidence)


@pytest.mark.parametrize("field", ["n", "seed", "prompts_sha256"])
def test_pictures_pair_off_only_where_prompts_and_noise_are_the_same(field):
    first, other = result(0.0), result(0.1, luck=1, **{field: 7})
    (row,) = score_differences(first, [other], ["odd"], BETTER)
    assert row["odd"].interval == unpaired(first.parts["odd"], other.parts["odd"])


@pytest.mark.parametrize(("one", "other", "fields"), [
    ({"seed": 0, "prompts_from": "a"}, {"seed": 1, "prompts_from": "b"}, []),
    ({"n": 5}, {"n": 6}, ["n"]),
    ({"metrics": {"fid": {"size": 1}}}, {"metrics": {"fid": {"size": 2}}}, ["metrics.fid.size"]),
    ({"metrics": {"fid": {"size": 1}}}, {"metrics": {"fid": {}}}, ["metrics.fid.size"]),
    ({"metrics": {"fid": {"size": 1}}}, {"metrics": {"kid": {"size": 2}}}, []),
    ({"reference": {"val": {"count": 1}}}, {"reference": {}}, []),
    ({"reference": {"val": {"count": 1}}}, {"reference": {"val": {"count": 2}}}, ["reference.val.count"]),
    ({"uint8": "round"}, {}, ["uint8"]),
])  # fmt: skip
def test_what_forbids_a_comparison(one, other, fields):
    assert list(protocol_differences(Card({}, one, {}), Card({}, other, {}))) == fields


@pytest.mark.parametrize(("value", "interval", "sign", "text"), [
    (0.1234, (0.1034, 0.1434), "", "0.123 [0.103, 0.143]"), (0.1234, (0.1034, 0.1434), "+", "+0.123 [+0.103, +0.143]"),
    (-12.3456, (-14.3, -10.3), "+", "-12.3 [-14.3, -10.3]"), (0.12345, None, "", "0.1235"),
    (1.0, (1.0, 1.0), "", "1 [1, 1]"), (2.5, (-float("inf"), float("inf")), "", "2.5 [-inf, inf]"),
    (-0.0001, (-0.02, 0.02), "", "0.000 [-0.020, 0.020]"),
])  # fmt: skip
def test_a_number_has_two_uncertain_digits(value, interval, sign, text):
    assert text_with_interval(value, interval, sign) == text


def test_results_are_equivalent_within_the_wider_end_of_their_interval():
    assert Difference(0.0, (-0.02, 0.031), "no difference").within == 0.031
    assert Difference(0.0, None, "not known").within is None
    assert Difference(0.0, (-math.inf, math.inf), "no difference").within is None
    assert verdict_text(Difference(0.0, (-0.02, 0.0311), "no difference")) == "no difference, within 0.032"
    assert verdict_text(Difference(0.0, (0.0, 0.0), "no difference")) == "no difference, within 0"
    assert verdict_text(Difference(-0.02, (-0.0311, -0.01), "worse")) == "worse, within 0.032"
    assert verdict_text(Difference(0.02, (0.01, 0.0311), "better")) == "better"
    assert verdict_text(Difference(0.5, (0.4, 0.6), "better")) == "better"
