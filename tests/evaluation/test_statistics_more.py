import math

import pytest
import torch
from scipy.stats import ttest_1samp

from dit.evaluation.statistics import GROUPS, corrected, paired, resampled_means, unpaired, verdict, winner


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(7)


def normal(draw, *shape):
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize(("n", "off"), [(8, 0.03), (16, 0.02), (40, 0.01)])
def test_the_bootstrap_of_few_pictures_is_as_wide_as_student_s_interval(draw, n, off):
    """Hesterberg 2015: the quantiles are Student's, and the spread is made up for the n of n - 1."""
    ours = theirs = 0.0
    for _ in range(60):
        d = normal(draw, n)
        (interval,) = paired(torch.zeros(n), [d])
        student = ttest_1samp(d.numpy(), 0).confidence_interval()
        ours, theirs = ours + interval[1] - interval[0], theirs + student.high - student.low
    assert ours / theirs == pytest.approx(1, abs=off)


def test_groups_are_of_pictures_at_random_whatever_their_order():
    """In order of class, pictures a group apart are alike, and sums of them would spread too little."""
    values = torch.linspace(0, 1, 2 * GROUPS, dtype=torch.float64)[:, None]
    means = resampled_means(values, 4000, seed=0)
    assert float(means.std()) == pytest.approx(float(values.std()) / math.sqrt(len(values)), rel=0.06)


@pytest.mark.parametrize(("wrong", "others", "told"), [(6, 1, True), (6, 30, False), (20, 30, True), (2, 1, False)])
def test_the_more_rows_there_are_the_more_a_winner_must_be_ahead(wrong, others, told):
    """With 6 of 200 pictures wrong where the best row has none, one other is told from it, and none of 30."""
    best = torch.ones(200, dtype=torch.bool)
    rows = [best, *(best & (torch.arange(200).roll(7 * i) >= wrong) for i in range(others))]
    interval = paired(best, [rows[1]], corrected(others))[0]
    assert (verdict(interval) == "worse") == told
    assert winner([float(row.double().mean()) for row in rows], rows, True) == (0, [0] if told else list(range(len(rows))))


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
