"""What the pictures of a cell cost."""

from types import SimpleNamespace

import pytest
import torch

from dit.cost import Cost, Price
from dit.evaluation.sampling_cost import Metered, cost_of, in_words, per_thousand, price_column, unit_of
from dit.layers.step_cache import CacheUse
from dit.scoring.samples import SampleBatch


class Counter:
    """A meter whose joules grow only while pictures are made."""

    method = "rapl"

    def __init__(self, known=True):
        self.joules, self.known = 0.0, known

    def now(self):
        return Cost(0.0, 0.0, self.joules if self.known else None)

    def since(self, start):
        return self.now() - start


def batches(counter, seconds):
    for _ in range(2):
        counter.joules += 3.0
        yield SampleBatch(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), ["a", "b"], [0, 1], 8.0, seconds)


@pytest.mark.parametrize(("known", "seconds", "joules"), [(True, 0.5, {"joules_rapl": 1.5}), (False, 0.5, {}), (True, 0.0, {})])  # fmt: skip
def test_the_energy_is_that_of_making_pictures_and_not_of_scoring_them(known, seconds, joules):
    """It is absent if it is unknown, and for pictures that were only read."""
    counter = Counter(known)
    metered = Metered(batches(counter, seconds), counter)
    for _ in metered:
        counter.joules += 100.0
    found = cost_of(SimpleNamespace(seconds=2 * seconds, n=4, nfe=8.0, cached=None), metered)
    assert {name: value for name, value in found.items() if "joules" in name} == joules
    assert found["seconds"] == seconds / 2


def test_a_step_cache_has_its_costs_too():
    scored = SimpleNamespace(seconds=1.0, n=4, nfe=8.0, cached=CacheUse(computed=10.0, saved=6.0, nfe=5.0))
    found = cost_of(scored, Metered([], Counter()))
    assert (found["effective_nfe"], found["blocks_computed"], found["blocks_saved"]) == (5.0, 10.0, 6.0)


def test_a_thousand_pictures():
    row = {"seconds": 0.36, "joules_nvml": 7.2}
    found = per_thousand(row, Price(10.0, "EUR"))
    assert found == {"seconds_per_thousand": 360.0, "EUR_per_thousand": 1.0, "Wh_nvml_per_thousand": 2.0}
    assert in_words(found) == ["A thousand of its pictures cost 360 seconds, 1 EUR, 2 Wh (nvml)."]
    assert [unit_of(name) for name in found] == ["seconds", "EUR", "Wh (nvml)"]
    assert price_column(found) == "EUR_per_thousand"
    plain = per_thousand({"seconds": 0.36}, Price())
    assert in_words(plain) == ["A thousand of its pictures cost 360 seconds; their energy is unknown."]
    assert price_column(plain) is None
    assert per_thousand({"seconds": 0.0}, Price(10.0, "EUR")) == {}
    assert in_words({"seconds": 0.0}) == []
