"""Intervals have their coverage, differences are unbiased, and a winner is named only if it is significant."""

import math

import pytest
import torch
from scipy.stats import binomtest, ttest_1samp, ttest_ind

from dit.evaluation.statistics import (
    GROUPS,
    SHARE,
    UNKNOWN,
    corrected,
    interval_of,
    mean_over_runs,
    paired,
    resampled_means,
    unpaired,
    verdict,
    wilson,
    winner,
)
from dit.metrics.frechet import Moments, distance_and_influences, root_of


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(7)


def uniform(draw, *shape):
    return torch.rand(*shape, generator=draw, dtype=torch.float64)


def normal(draw, *shape):
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def holds(intervals, truth):
    return sum(low <= truth <= high for low, high in intervals) / len(intervals)


@pytest.mark.parametrize(("right", "n"), [(0, 5), (1, 7), (50, 100), (999, 1000), (8, 8)])
def test_wilson_is_scipys(right, n):
    theirs = binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    part = torch.arange(n) < right
    assert interval_of(part, right / n) == wilson(right, n)


@pytest.mark.parametrize(("share", "n"), [(0.5, 30), (0.9, 100), (0.98, 300)])
def test_wilson_holds_the_probability_in_95_percent(share, n):
    """Exactly, over all outcomes: on average about 95 %, and nowhere near 90 %."""
    outcomes = torch.distributions.Binomial(n, torch.tensor(share, dtype=torch.float64))
    held = [low <= share <= high for low, high in (wilson(k, n) for k in range(n + 1))]
    coverage = float((outcomes.log_prob(torch.arange(n + 1)).exp() * torch.tensor(held)).sum())
    assert 0.93 < coverage < 0.975


def test_a_mean_has_the_interval_of_students_t(draw):
    part = normal(draw, 12) * 3 + 5
    theirs = ttest_1samp(part.numpy(), 0).confidence_interval()
    assert interval_of(part, float(part.mean())) == pytest.approx((theirs.low, theirs.high))
    low, high = interval_of(part.float(), 2.0)
    assert (low + high) / 2 == pytest.approx(2), "the interval stands around the score"
    assert interval_of(part[:1], 5.0) == UNKNOWN


def test_unpaired_floats_are_welchs(draw):
    a, b = normal(draw, 40), 2 * normal(draw, 15) + 1
    theirs = ttest_ind(b.numpy(), a.numpy(), equal_var=False).confidence_interval()
    assert unpaired(a, b) == pytest.approx((theirs.low, theirs.high))
    assert unpaired(a[:1], b) == UNKNOWN


@pytest.mark.parametrize("skewed", [False, True])
def test_the_bootstrap_holds_the_difference_in_95_percent(draw, skewed):
    noise = uniform(draw, 1000, 60).log() + 1 if skewed else normal(draw, 1000, 60)
    one = normal(draw, 60)
    intervals = paired(one, list(one + 0.3 + noise))
    assert holds(intervals, 0.3) == pytest.approx(0.945, abs=0.025)


@pytest.mark.parametrize(("n", "flipped"), [(1000, 0.003), (200, 0.05), (20, 0.4)])
def test_shares_hold_the_difference_even_where_few_pictures_differ(draw, n, flipped):
    """A plain bootstrap holds it in 87 % of the first case, where three pictures differ."""
    intervals = []
    for _ in range(600):
        one = uniform(draw, n) < 0.5
        intervals += paired(one, [one ^ (uniform(draw, n) < flipped)])
    assert holds(intervals, 0.0) > 0.93
    others = [unpaired(uniform(draw, n) < flipped, uniform(draw, n) < flipped) for _ in range(600)]
    assert holds(others, 0.0) > 0.93


def test_pairing_shrinks_the_interval_where_noise_is_shared(draw):
    one = normal(draw, 500)
    other = one + 0.1 * normal(draw, 500)
    (near,), apart = paired(one, [other]), unpaired(one, other)
    assert near[1] - near[0] < 0.15 * (apart[1] - apart[0])
    right = one > 0
    (near,), apart = paired(right, [other > 0]), unpaired(right, other > 0)
    assert near[1] - near[0] < 0.5 * (apart[1] - apart[0])
    alone = normal(draw, 500)
    (near,), apart = paired(one, [alone]), unpaired(one, alone)
    assert near[1] - near[0] == pytest.approx(apart[1] - apart[0], rel=0.15), "nothing shared, nothing won"


@pytest.mark.parametrize("difference", [lambda a, b: paired(a, [b])[0], unpaired], ids=["paired", "unpaired"])
@pytest.mark.parametrize("share", [False, True])
def test_differences_the_other_way_round_are_their_negatives(draw, difference, share):
    a, b = normal(draw, 50), normal(draw, 50) + 0.2
    a, b = (a > 0, b > 0) if share else (a, b)
    low, high = difference(a, b)
    assert difference(b, a) == pytest.approx((-high, -low), abs=1e-14)


def test_identical_results_do_not_differ(draw):
    floats, shares = normal(draw, 300), uniform(draw, 300) < 0.9
    assert paired(floats, [floats.clone()]) == [(0.0, 0.0)]
    (low, high) = paired(shares, [shares.clone()])[0]
    assert low == -high, "no difference was found, which does not prove that there is none"
    assert 0 < high < 0.01
    assert verdict((0.0, 0.0)) == verdict((low, high), False) == "no difference"


def test_a_constant_shift_is_certain(draw):
    a = normal(draw, 100)
    assert paired(a, [a + 0.5])[0] == pytest.approx((0.5, 0.5))


def test_others_share_their_resamples_and_do_not_change_each_other(draw):
    one, others = normal(draw, 80), [normal(draw, 80) for _ in range(3)]
    together = paired(one, others)
    assert together == [pytest.approx(paired(one, [other])[0]) for other in others]
    assert together == paired(one, others), "seeded"
    assert together != paired(one, others, seed=1)


def test_resampled_means_are_spread_as_a_mean_is_also_when_drawn_in_groups(draw):
    for n in (300, 10_001):
        values = normal(draw, n, 2) * torch.tensor([1.0, 5.0]) + 3
        means = resampled_means(values, 4000, seed=0)
        assert means.shape == (4000, 2)
        expected = values.std(0) / math.sqrt(n)
        torch.testing.assert_close(means.std(0), expected, rtol=0.06, atol=0)
        torch.testing.assert_close(means.mean(0), values.mean(0), rtol=0, atol=float(expected.max()) / 10)


def test_frechet_distances_have_intervals_for_the_difference(draw):
    """The distances of 100 pairs of samples, and for each pair the interval from its influences."""
    mix = normal(draw, 8, 8) / 3

    def moments(x):
        found = Moments.zero(8)
        found.add(x)
        return found

    real = moments(normal(draw, 5000, 8) @ mix)
    root = root_of(real.gaussian()[1])
    found, intervals = [], []
    for _ in range(100):
        noise = normal(draw, 200, 8)
        scores, parts = [], []
        for samples in (noise @ mix + 0.1, (noise + 0.2 * normal(draw, 200, 8)) @ mix + 0.15):
            distance, influences = distance_and_influences(real, root, moments(samples), samples)
            scores.append(distance)
            parts.append(distance + influences)
        found.append(scores[1] - scores[0])
        intervals.append(paired(parts[0], [parts[1]])[0])
        assert sum(intervals[-1]) / 2 == pytest.approx(found[-1], abs=0.2 * (intervals[-1][1] - intervals[-1][0]))
    assert holds(intervals, sum(found) / 100) >= 0.88


@pytest.mark.parametrize(("interval", "higher_is_better", "says"), [
    ((0.1, 0.2), True, "better"), ((0.1, 0.2), False, "worse"), ((-0.2, -0.1), True, "worse"), ((-0.2, -0.1), False, "better"),
    ((-0.1, 0.2), True, "no difference"), ((0.0, 0.2), False, "no difference"), (UNKNOWN, True, "no difference"),
    ((0.1, 0.2), None, "higher"), ((-0.2, -0.1), None, "lower"), ((-1.0, 1.0), None, "no difference"),
])  # fmt: skip
def test_verdicts(interval, higher_is_better, says):
    assert verdict(interval, higher_is_better) == says


def test_many_comparisons_need_more_confidence(draw):
    """20 equal results: in 95 % of experiments none of them may be called better or worse."""
    assert corrected(1) == corrected(0) == pytest.approx(0.95)
    assert corrected(20) == pytest.approx(0.9975)
    false_alarms = {1: 0, 20: 0}
    for _ in range(30):
        one, others = normal(draw, 100), [normal(draw, 100) for _ in range(20)]
        for comparisons in false_alarms:
            intervals = paired(one, others, corrected(comparisons))
            false_alarms[comparisons] += any(verdict(i) != "no difference" for i in intervals)
    assert false_alarms[20] <= 5
    assert false_alarms[1] > 7


def test_the_winner_and_those_that_do_not_differ_from_it(draw):
    skill = normal(draw, 1000)
    rows = [skill + 0.1 * normal(draw, 1000) + shift for shift in (0.0, 0.5, 0.502, -1.0)]
    scores = [float(row.mean()) for row in rows]
    assert winner(scores, rows, True) == (max((1, 2), key=scores.__getitem__), [1, 2])
    assert winner(scores, rows, False) == (3, [3])
    assert winner(scores[:1], rows[:1], True) == (0, [0])
    shares = [row > 0 for row in rows]
    best, tied = winner([float(part.double().mean()) for part in shares], shares, True)
    assert best in (1, 2)
    assert tied == [1, 2]


def test_the_truly_best_row_is_among_the_winners(draw):
    """Although the best of many equal results is best by chance."""
    lost = 0
    for _ in range(60):
        rows = [normal(draw, 100) for _ in range(12)]
        lost += 0 not in winner([float(row.mean()) for row in rows], rows, True)[1]
    assert lost <= 6


@pytest.mark.parametrize(("one", "other", "fault"), [
    (torch.zeros(3), torch.zeros(4), "cannot be paired"), (torch.zeros(3), torch.zeros(3) > 0, "cannot be paired"),
    (torch.zeros(3), torch.tensor([0, float("nan"), 0]), "NaN"), (torch.zeros(0), torch.zeros(0), "one number for each"),
    (torch.zeros(3, 2), torch.zeros(3, 2), "one number for each"),
])  # fmt: skip
def test_parts_that_say_nothing_are_refused(one, other, fault):
    with pytest.raises(ValueError, match=fault):
        paired(one, [other])


@pytest.mark.parametrize(("n", "off"), [(8, 0.03), (16, 0.02), (40, 0.01)])
def test_the_bootstrap_of_few_pictures_is_as_wide_as_student_s_interval(draw, n, off):
    """Hesterberg 2015: Student's quantiles, and the standard deviation with n - 1."""
    ours = theirs = 0.0
    for _ in range(60):
        d = normal(draw, n)
        (interval,) = paired(torch.zeros(n), [d])
        student = ttest_1samp(d.numpy(), 0).confidence_interval()
        ours, theirs = ours + interval[1] - interval[0], theirs + student.high - student.low
    assert ours / theirs == pytest.approx(1, abs=off)


def test_groups_are_random_in_any_order_of_the_pictures():
    """In order of class, the groups would be similar, and the variance of their sums too small."""
    values = torch.linspace(0, 1, 2 * GROUPS, dtype=torch.float64)[:, None]
    means = resampled_means(values, 4000, seed=0)
    assert float(means.std()) == pytest.approx(float(values.std()) / math.sqrt(len(values)), rel=0.06)


@pytest.mark.parametrize(
    ("wrong", "others", "separated"), [(6, 1, True), (6, 30, False), (20, 30, True), (2, 1, False)]
)
def test_the_more_rows_there_are_the_more_a_winner_must_be_ahead(wrong, others, separated):
    """With 6 of 200 pictures wrong where the best row has none, one other differs significantly, and none of 30."""
    best = torch.ones(200, dtype=torch.bool)
    rows = [best, *(best & (torch.arange(200).roll(7 * i) >= wrong) for i in range(others))]
    interval = paired(best, [rows[1]], corrected(others))[0]
    assert (verdict(interval) == "worse") == separated
    tied = [0] if separated else list(range(len(rows)))
    assert winner([float(row.double().mean()) for row in rows], rows, True) == (0, tied)


def test_shares_differ_by_one_at_most():
    right, wrong = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)
    for low, high in (paired(right, [wrong])[0], unpaired(right, wrong)):
        assert low == -1
        assert high < 1
    for low, high in (paired(wrong, [right])[0], unpaired(wrong, right)):
        assert high == 1
        assert low > -1


def test_the_seed_of_a_bootstrap_decides_its_draws(draw):
    values = normal(draw, 50, 1)
    assert torch.equal(resampled_means(values, 100, 3), resampled_means(values, 100, 3))
    assert not torch.equal(resampled_means(values, 100, 3), resampled_means(values, 100, 4))


def test_a_mean_over_runs_has_an_interval_within_its_bounds():
    mean, interval = mean_over_runs([0.9, 1.0, 0.95], SHARE)
    assert mean == pytest.approx(0.95)
    assert interval == (pytest.approx(0.95 - 4.30265 * 0.05 / 3**0.5, abs=1e-5), 1.0)
    assert mean_over_runs([0.9, 1.0, 0.95])[1][1] > 1
    assert [mean_over_runs(values)[1] for values in ([0.5], [0.5, 0.5], [0.5, math.inf])] == [None] * 3
