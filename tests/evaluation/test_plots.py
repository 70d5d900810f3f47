import pytest

from dit.evaluation.plots import Score, pareto_front


@pytest.mark.parametrize(("higher", "front"), [(True, [(1, 3), (4, 5)]), (False, [(1, 3), (2, 2), (8, 1)])])
def test_the_front_is_what_nothing_cheaper_beats(higher, front):
    rows = [{"nfe": nfe, "s": s} for nfe, s in [(8, 1), (2, 2), (1, 3), (4, 5), (8, 4), (2, 3), (1, 3)]]
    assert [(row["nfe"], row["s"]) for row in pareto_front(rows, "nfe", Score("s", higher))] == front
