"""Which values are outliers among recent ones."""

import math

import pytest

from dit.training.window import Window


def filled(deviations=5.0, values=(1.0, 1.1, 0.9, 1.05, 0.95, 1.0), size=8):
    window = Window(size, deviations)
    for value in values:
        window.add({"loss": value})
    return window


def test_the_limit_is_in_robust_deviations_above_the_median():
    window = filled()
    assert window.limit("loss") == pytest.approx(1.0 + 5 * 1.4826 * 0.05)
    assert window.fault({"loss": 1.36}) is None
    assert window.fault({"loss": 0.0}) is None
    assert window.fault({"loss": 1.38}) == "the loss 1.38 exceeds 1.371, 5 deviations above the median"


def test_one_outlier_among_the_recent_values_hardly_moves_the_limit():
    assert filled(values=(1.0, 1.1, 0.9, 1.05, 0.95, 1e6)).limit("loss") < 2


def test_there_are_no_outliers_before_half_of_the_window_or_without_deviations():
    assert filled(values=(1.0, 1.1, 0.9)).fault({"loss": 1e9}) is None
    assert filled(deviations=None).fault({"loss": 1e9}) is None


def test_equal_values_tolerate_a_hundredth_of_the_median_per_deviation():
    window = filled(values=(2.0,) * 8)
    assert window.fault({"loss": 2.09}) is None
    assert window.fault({"loss": 2.11}) is not None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_a_fault_at_once(value):
    assert Window(8, None).fault({"loss": 1.0, "gradient norm": value}) == "the gradient norm is not finite"


def test_it_is_restored_from_its_state_and_forgets_old_values():
    window, again = filled(values=range(1, 21)), Window(8, 5.0)
    again.load_state_dict(window.state_dict())
    assert again.limit("loss") == window.limit("loss")
    assert again.state_dict() == {"loss": list(range(13, 21))}
