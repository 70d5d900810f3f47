"""Pictures on the edge of a ball, duplicates, and distances in blocks."""

import pytest
import torch
from torch.nn import functional as F

from dit.metrics import nearest_train, neighbours
from dit.metrics.manifold import DensityCoverage, PrecisionRecall
from dit.metrics.nearest_train import NearestTrain
from dit.metrics.neighbours import kth_neighbour, squared_distances

from .every import Pixels, pictures_to_features, random_pictures


def on_a_line(places):
    """Pictures that differ in one pixel; the features of adjacent places differ by exactly 1/4."""
    images = torch.full((len(places), 3, 2, 2), 128, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor([96 + 16 * place for place in places])
    return images


REAL, GENERATED = (
    range(10),
    [-3, -4, -5, -6],
)  # the balls around 0 and -3 have radius 3: each reaches the other's centre


def scores_of(metric):
    metric.update(on_a_line(REAL), real=True)
    metric.update(on_a_line(GENERATED))
    return list(metric.compute().values())


def test_the_edge_of_a_ball_belongs_to_it_in_precision_and_recall():
    """Kynkäänniemi et al. 2019, eq. 1: at most as far as the k-th neighbour."""
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    assert scores_of(PrecisionRecall(Pixels(), k=3)) == [1 / 4, 1 / 10]
    theirs = calculate_precision_recall_full(*(pictures_to_features(on_a_line(x)).double() for x in (GENERATED, REAL)))
    assert theirs == pytest.approx((1 / 4, 1 / 10))


def test_the_edge_of_a_ball_does_not_belong_to_it_in_density_and_coverage():
    """Naeem et al. 2020 and their code: nearer than the k-th neighbour."""
    assert scores_of(DensityCoverage(Pixels(), k=3)) == [0, 0]


def test_distances_in_blocks_equal_those_of_cdist(monkeypatch):
    a, b = (pictures_to_features(random_pictures(count, seed)) for count, seed in ((9, 1), (9000, 2)))
    expected = torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist") ** 2
    for entries in (2**24, 20_000):
        monkeypatch.setattr(neighbours, "ENTRIES", entries)
        torch.testing.assert_close(torch.cat(list(squared_distances(a, b))), expected, rtol=1e-9, atol=1e-9)
    own = torch.cdist(a.double(), a.double(), compute_mode="donot_use_mm_for_euclid_dist") ** 2
    for k in (1, 3):
        torch.testing.assert_close(kth_neighbour(a, k), own.sort(1).values[:, k], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(kth_neighbour(a, k, step=4), own.sort(1).values[::4, k], rtol=1e-9, atol=1e-9)


def test_close_pictures_have_a_nonzero_distance():
    x = torch.full((2, 12), 100.0)
    x[1, 0] += 1e-2
    [block] = squared_distances(x, x)
    assert block[0, 1] == pytest.approx(1e-4, rel=1e-3)


def test_the_copy_threshold_is_the_1_percent_quantile_of_training_distances():
    train = pictures_to_features(random_pictures(1000, seed=5))
    near = torch.cdist(*2 * [F.normalize(train.double())], compute_mode="donot_use_mm_for_euclid_dist")
    near = near.fill_diagonal_(9).amin(1)
    copy_threshold = NearestTrain("nearest", Pixels()).copy_threshold(train)
    assert float((near <= copy_threshold + 1e-6).double().mean()) == pytest.approx(0.01, abs=0.0005)


def test_the_copy_threshold_of_many_pictures_is_estimated_from_some(monkeypatch):
    train = pictures_to_features(random_pictures(1000, seed=5))
    monkeypatch.setattr(nearest_train, "MAX_QUERIES", 250)
    near = torch.cdist(*2 * [F.normalize(train.double())], compute_mode="donot_use_mm_for_euclid_dist")
    every_fourth = near.fill_diagonal_(9).amin(1)[::4]
    copy_threshold = NearestTrain("nearest", Pixels()).copy_threshold(train)
    assert float((every_fourth <= copy_threshold + 1e-6).double().mean()) == pytest.approx(0.01, abs=0.0041)


class Rounding(Pixels):
    """A network whose features of the same picture differ slightly between batches."""

    def extract(self, images):
        self.call = getattr(self, "call", 0) + 1
        return {"pool": super().extract(images)["pool"] * 2 + 1e-5 * torch.arange(12).roll(self.call)}


def test_copies_are_found_despite_duplicates_in_training_and_rounding():
    """More than 1 % of the training pictures are duplicates at distance 0, so that the threshold is 0."""
    train = random_pictures(200, seed=1)
    train[1::20] = train[::20]
    metric = NearestTrain("nearest", Rounding())
    metric.update(train, real=True)
    metric.update(torch.cat([train[50:60], random_pictures(10, seed=2)]))
    result = metric.result()
    assert result.each["nearest_copies"].tolist() == [True] * 10 + [False] * 10
    assert (result.each["nearest"][:10] > 0).all()


def test_one_training_picture_has_no_neighbour():
    metric = NearestTrain("nearest", Pixels())
    metric.update(random_pictures(1, seed=1), real=True)
    metric.update(random_pictures(5, seed=2))
    with pytest.raises(ValueError, match="but has 1; give at least 2"):
        metric.compute()
