"""Pictures on the edge of a ball, twins, and blocks of the matrix of distances."""

import pytest
import torch
from torch.nn import functional as F

from dit.metrics import nearest_train, neighbours
from dit.metrics.manifold import DensityCoverage, PrecisionRecall
from dit.metrics.nearest_train import NearestTrain
from dit.metrics.neighbours import kth_neighbour, squared_distances

from .every import Pixels, drawn, pictures_to_features


def on_a_line(places):
    """Pictures that differ in one pixel, whose features lie a quarter apart from one place to the next, exactly."""
    images = torch.full((len(places), 3, 2, 2), 128, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor([96 + 16 * place for place in places])
    return images


REAL, MADE = range(10), [-3, -4, -5, -6]  # the balls of 0 and of -3 reach to 3 places, each to the other's centre


def judged(metric):
    metric.update(on_a_line(REAL), real=True)
    metric.update(on_a_line(MADE))
    return list(metric.compute().values())


def test_the_edge_of_a_ball_belongs_to_it_in_precision_and_recall():
    """Kynkäänniemi et al. 2019, eq. 1: at most as far as the k-th neighbour."""
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    assert judged(PrecisionRecall(Pixels(), k=3)) == [1 / 4, 1 / 10]
    theirs = calculate_precision_recall_full(*(pictures_to_features(on_a_line(x)).double() for x in (MADE, REAL)))
    assert theirs == pytest.approx((1 / 4, 1 / 10))


def test_the_edge_of_a_ball_does_not_belong_to_it_in_density_and_coverage():
    """Naeem et al. 2020 and their code: nearer than the k-th neighbour."""
    assert judged(DensityCoverage(Pixels(), k=3)) == [0, 0]


def test_the_places_of_neighbours_are_those_of_all_distances(monkeypatch):
    a, b = (pictures_to_features(drawn(count, seed)) for count, seed in ((9, 1), (9000, 2)))
    expected = torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist") ** 2
    for entries in (2**24, 20_000):
        monkeypatch.setattr(neighbours, "ENTRIES", entries)
        torch.testing.assert_close(torch.cat(list(squared_distances(a, b))), expected, rtol=1e-9, atol=1e-9)
    own = torch.cdist(a.double(), a.double(), compute_mode="donot_use_mm_for_euclid_dist") ** 2
    for k in (1, 3):
        torch.testing.assert_close(kth_neighbour(a, k), own.sort(1).values[:, k], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(kth_neighbour(a, k, step=4), own.sort(1).values[::4, k], rtol=1e-9, atol=1e-9)


def test_pictures_that_are_near_are_not_taken_for_the_same():
    x = torch.full((2, 12), 100.0)
    x[1, 0] += 1e-2
    [block] = squared_distances(x, x)
    assert block[0, 1] == pytest.approx(1e-4, rel=1e-3)


def test_a_copy_is_as_near_as_the_nearest_hundredth_of_training_pictures():
    train = pictures_to_features(drawn(1000, seed=5))
    near = torch.cdist(*2 * [F.normalize(train.double())], compute_mode="donot_use_mm_for_euclid_dist")
    near = near.fill_diagonal_(9).amin(1)
    usual = NearestTrain("nearest", Pixels()).usual(train)
    assert float((near <= usual + 1e-6).double().mean()) == pytest.approx(0.01, abs=0.0005)


def test_the_usual_distance_of_many_pictures_is_asked_of_some(monkeypatch):
    train = pictures_to_features(drawn(1000, seed=5))
    monkeypatch.setattr(nearest_train, "ASKED", 250)
    near = torch.cdist(*2 * [F.normalize(train.double())], compute_mode="donot_use_mm_for_euclid_dist")
    every_fourth = near.fill_diagonal_(9).amin(1)[::4]
    usual = NearestTrain("nearest", Pixels()).usual(train)
    assert float((every_fourth <= usual + 1e-6).double().mean()) == pytest.approx(0.01, abs=0.0041)


class Rounding(Pixels):
    """A network that gives the same picture in another batch a little differently."""

    def extract(self, images):
        self.call = getattr(self, "call", 0) + 1
        return {"pool": super().extract(images)["pool"] * 2 + 1e-5 * torch.arange(12).roll(self.call)}


def test_a_copy_is_one_though_training_pictures_have_twins_and_networks_round():
    """The nearest hundredth of the training pictures are twins, at distance 0, and so tell nothing of nearness."""
    train = drawn(200, seed=1)
    train[1::20] = train[::20]
    metric = NearestTrain("nearest", Rounding())
    metric.update(train, real=True)
    metric.update(torch.cat([train[50:60], drawn(10, seed=2)]))
    judged = metric.result()
    assert judged.each["nearest_copies"].tolist() == [True] * 10 + [False] * 10
    assert (judged.each["nearest"][:10] > 0).all()


def test_one_training_picture_has_no_neighbour():
    metric = NearestTrain("nearest", Pixels())
    metric.update(drawn(1, seed=1), real=True)
    metric.update(drawn(5, seed=2))
    with pytest.raises(ValueError, match="show at least 2"):
        metric.compute()
