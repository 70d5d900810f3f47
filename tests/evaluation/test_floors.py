"""What real pictures get: they are others than the references, and each comes with its own caption."""

import numpy as np
import pytest

from dit.encoders.autoencoder import Identity
from dit.evaluation.card import Card
from dit.evaluation.floors import floors
from dit.evaluation.sweep import Protocol, Sweep
from dit.metrics.prompt_accuracy import PromptAccuracy

COUNT, TAKEN = 20, 8


class Numbered:
    """Picture i is grey, 10 i bright, and its caption says so."""

    fingerprint = "numbered"

    def __init__(self, count=COUNT):
        self.captions = [str(10 * i) for i in range(count)]

    def __len__(self):
        return len(self.captions)

    def images(self, index):
        return np.broadcast_to(10 * np.asarray(index).reshape(-1, 1, 1, 1), (len(index), 3, 4, 4)).astype(np.uint8)


class Darker(Identity):
    """An autoencoder that loses 30 grey values on the way."""

    fingerprint = "darker"

    def encode(self, images):
        return images - 10 / 127.5

    def decode(self, latents):
        return latents - 20 / 127.5


class Metric(PromptAccuracy):
    """Keeps what it is shown. A picture is right that is as bright as its caption says."""

    def __init__(self):
        super().__init__(lambda images, prompts: {"bright": images[:, 0, 0, 0].numpy() == np.array(prompts, int)})
        self.shown = {}

    def update(self, images, prompts=None, index=None, real=False):
        assert not real
        self.shown |= dict(zip(index, images[:, 0, 0, 0].tolist(), strict=True))
        super().update(images, prompts, index)


def made(folder, prompts=6, taken=TAKEN, count=COUNT, autoencoder=None):
    metric = Metric()
    card = {"n": prompts, "seed": 0, "size": [4, 4], "prompts_sha256": "of the sweep"}
    sweep = Sweep({"it": metric}, Protocol(card, {}, ["a"] * prompts, 0, 0), folder, lambda: None)
    return floors(sweep, Numbered(count), taken, 4, autoencoder), metric


def test_a_floor_is_made_of_pictures_that_are_no_references_with_their_captions(tmp_path):
    found, metric = made(tmp_path)
    assert set(found) == {"real"}
    assert found["real"].scores["prompt_accuracy"] == 1
    assert sorted(metric.shown) == list(range(6))
    assert len(set(metric.shown.values())) == 6
    assert found["real"].protocol["n"] == 6
    assert found["real"].protocol["prompts_sha256"] != "of the sweep"
    assert isinstance(found["real"], Card)


def test_references_and_floors_share_no_picture(tmp_path):
    """With as many asked for as are left, none may be missing and none of the references there."""
    rest = sorted(made(tmp_path / "a", prompts=COUNT, taken=TAKEN)[1].shown.values())
    more = sorted(made(tmp_path / "b", prompts=COUNT, taken=TAKEN + 4)[1].shown.values())
    assert len(set(rest)) == COUNT - TAKEN
    assert set(more) < set(rest), "the more are references, the fewer are left"


def test_the_autoencoder_s_floor_is_of_pictures_that_went_through_it(tmp_path):
    found, metric = made(tmp_path, autoencoder=Darker())
    assert found["real"].scores["prompt_accuracy"] == 1
    assert found["autoencoder"].scores["prompt_accuracy"] == 0
    assert found["autoencoder"].subject["autoencoder"] == "darker"
    real = made(tmp_path / "alone")[1].shown
    assert metric.shown == {place: max(bright - 30, 0) for place, bright in real.items()}


@pytest.mark.parametrize(("taken", "n"), [(COUNT - 2, 2), (COUNT - 1, 0), (COUNT, 0)])
def test_fewer_pictures_make_a_floor_and_one_makes_none(tmp_path, taken, n, capsys):
    found, _ = made(tmp_path, taken=taken)
    assert bool(found) == (n > 0) == ("none are left for a floor" not in capsys.readouterr().err)
    assert not n or found["real"].protocol["n"] == n
