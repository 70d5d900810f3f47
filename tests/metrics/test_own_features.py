"""Extractors without a download: pixels, and a network fitted on the pictures at hand."""

import numpy as np
import pytest
import torch

from dit.data.shapes import Shapes
from dit.metrics.frechet import FrechetDistance
from dit.metrics.nearest_train import NearestTrain
from dit.metrics.own_features import MIN_PICTURES, OwnFeatures, Pixels, contrast, views
from dit.scoring.fitted_extractors import fit_extractors, learning_extractors
from dit.scoring.score import score


class Photos:
    """Random smooth pictures, 32 x 32: no two are alike."""

    def __init__(self, split, count):
        self.split, self.count, self.captions = split, count, [""] * count
        self.fingerprint = f"photos {split} {count}"

    def __len__(self):
        return self.count

    def images(self, index):
        coarse = [np.random.default_rng([self.split, int(i)]).integers(0, 256, (3, 6, 6)) for i in index]
        fine = torch.nn.functional.interpolate(torch.from_numpy(np.stack(coarse)).float(), (32, 32), mode="bicubic")
        return fine.clamp(0, 255).to(torch.uint8).numpy()


TRAIN, NEW = Photos(0, 300), Photos(1, 100)
COPIED = torch.from_numpy(TRAIN.images(range(0, 300, 3)))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    extractor = OwnFeatures(size=16, steps=100)
    extractor.fit(TRAIN, tmp_path_factory.mktemp("cache"))
    return extractor


def copies(extractor, images):
    metric = NearestTrain("nearest", extractor)
    metric.update(torch.from_numpy(TRAIN.images(range(300))), real=True)
    metric.update(images)
    return metric.compute()["nearest_copies"]


def test_pixels_find_noisy_copies_and_no_others():
    noisy = (COPIED + 12 * torch.randn(COPIED.shape)).round().clamp(0, 255).to(torch.uint8)
    assert copies(Pixels(), COPIED) == copies(Pixels(), noisy) == 1.0
    assert copies(Pixels(), torch.from_numpy(NEW.images(range(100)))) <= 0.05
    assert copies(Pixels(), COPIED.flip(-1)) < 0.1


def test_the_fitted_network_finds_mirrored_copies_too(fitted):
    assert copies(fitted, COPIED) == 1.0
    assert copies(fitted, COPIED.flip(-1)) > 0.6
    assert copies(fitted, torch.from_numpy(NEW.images(range(100)))) <= 0.05


def test_features_do_not_depend_on_the_batch(fitted):
    whole = fitted(COPIED)["pool"]
    assert whole.shape == (100, 128)
    torch.testing.assert_close(fitted(COPIED[3:5].clone())["pool"], whole[3:5], atol=1e-5, rtol=1e-4)
    assert Pixels(8)(COPIED)["pool"].shape == (100, 192)
    assert Pixels(8)(COPIED)["pool"].abs().max() <= 1


def test_the_fit_is_kept_by_pictures_settings_and_code(tmp_path, fitted, monkeypatch):
    random = torch.get_rng_state()
    one, again, other, wider = (
        OwnFeatures(16, 8, 2),
        OwnFeatures(16, 8, 2),
        OwnFeatures(16, 8, 2),
        OwnFeatures(16, 16, 2),
    )
    one.fit(TRAIN, tmp_path)
    assert torch.equal(torch.get_rng_state(), random)
    monkeypatch.setattr("dit.metrics.own_features.fitted_network", None)  # a second fit would fail
    again.fit(TRAIN, tmp_path)
    assert again.fingerprint == one.fingerprint
    for extractor, pictures in ((other, NEW), (wider, TRAIN)):
        with pytest.raises(TypeError):
            extractor.fit(pictures, tmp_path)
    monkeypatch.setattr("dit.metrics.own_features.code_digest", lambda *rooms: "other code")
    with pytest.raises(TypeError):
        other.fit(TRAIN, tmp_path)
    assert TRAIN.fingerprint in one.fingerprint


def test_an_unfitted_network_and_too_few_pictures_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not fitted"):
        OwnFeatures()(COPIED)
    with pytest.raises(ValueError, match=f"fewer than {MIN_PICTURES}"):
        OwnFeatures().fit(Photos(0, MIN_PICTURES - 1), tmp_path)
    metrics = {"fd": FrechetDistance("fd_own", OwnFeatures())}
    assert len(learning_extractors(metrics.values())) == 1
    with pytest.raises(ValueError, match="none are given"):
        fit_extractors(metrics.values(), None, tmp_path)


class Counted(Pixels):
    """An extractor that counts how often it is fitted."""

    is_fitted_on_data, fits = True, 0

    def fit(self, source, cache_dir):
        self.fits += 1


@pytest.mark.parametrize("rank", [0, 1])
def test_metrics_that_share_an_extractor_fit_it_once(rank, tmp_path, monkeypatch):
    monkeypatch.setattr("dit.scoring.fitted_extractors.rank_and_world_size", lambda: (rank, 2))
    extractor = Counted()
    metrics = [FrechetDistance("a", extractor), NearestTrain("b", extractor), FrechetDistance("c", Pixels())]
    assert learning_extractors(metrics) == [extractor]
    fit_extractors(metrics, TRAIN, tmp_path)
    assert extractor.fits == 1


def test_views_move_and_mirror_pictures(monkeypatch):
    """Without noise, gain and offset, a view is a picture shifted by at most an eighth of its side, or its mirror
    image."""
    monkeypatch.setattr("dit.metrics.own_features.NOISE", 0.0)
    monkeypatch.setattr("dit.metrics.own_features.torch.randn", lambda *sides: torch.zeros(sides))
    torch.manual_seed(0)
    images = torch.from_numpy(TRAIN.images(range(64))).float() / 127.5 - 1
    border = torch.nn.functional.pad(images, (4, 4, 4, 4), mode="replicate")
    shifted = {(y, x): border[:, :, 4 + y : 36 + y, 4 + x : 36 + x] for y in range(-4, 5) for x in range(-4, 5)}
    found = set()
    for i, view in enumerate(views(images)):
        kinds = {
            (*shift, mirrored)
            for shift, moved in shifted.items()
            for mirrored in (False, True)
            if torch.equal(view, moved[i].flip(-1) if mirrored else moved[i])
        }
        assert len(kinds) == 1
        found |= kinds
    assert {mirrored for *_, mirrored in found} == {False, True}
    assert {y for y, *_ in found} == {x for _, x, _ in found} == set(range(-4, 5))


def test_views_disturb_pictures():
    torch.manual_seed(0)
    made = views(torch.zeros(64, 3, 8, 8))
    assert made.mean((1, 2, 3)).std() == pytest.approx(0.1, rel=0.4)  # brightness
    assert made.std((1, 2, 3)).min() > 0


def test_the_loss_is_that_of_simclr():
    """Worked by hand: identical pairs that are orthogonal to all others."""
    features = torch.eye(3).repeat(2, 1)
    expected = -torch.log(torch.exp(torch.tensor(10.0)) / (torch.exp(torch.tensor(10.0)) + 4))
    assert contrast(features).item() == pytest.approx(expected.item(), rel=1e-2)
    assert contrast(features[torch.tensor([0, 1, 2, 1, 2, 0])]) > contrast(features)


def test_scores_from_python_fit_it(tmp_path):
    images = torch.from_numpy(Shapes("val", 32).images(np.arange(32)))
    metrics = {"fd_own": FrechetDistance("fd_own", OwnFeatures(16, 8, 2))}
    found = score(images, metrics, real=Shapes("val", 64), train=Shapes("train", 64), cache_dir=tmp_path)
    assert found.scores["fd_own_32"] > 0
    assert list(tmp_path.glob("own_features_*.safetensors"))
