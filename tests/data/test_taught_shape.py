"""A shape that the default data never draw: its few training pictures, and what the checker says about it."""

import numpy as np
import pytest
import torch

from dit.data import shapes_checker
from dit.data.shapes import SHAPES, Shapes
from dit.data.shapes_checker import ShapesChecker
from dit.data.taught_shape import TaughtShape


def pixels(source):
    return torch.from_numpy(source.images(np.arange(len(source))))


def renamed(captions, shape):
    return [" ".join([*words[:3], shape, *words[4:]]) for words in map(str.split, captions)]


def test_no_combination_of_training_is_among_the_unseen_ones():
    train, unseen = set(TaughtShape("heart", "train", 8).captions), set(TaughtShape("heart", "unseen", 1024).captions)
    assert len(train) == 8
    assert len(unseen) == 2 * 8 * 3 - 8
    assert not train & unseen
    assert not any("heart" in caption for caption in Shapes("train", 2000).captions)


def test_the_checker_accepts_every_picture_of_it():
    source = TaughtShape("heart", "unseen", 160)
    assert all(right.all() for right in ShapesChecker()(pixels(source), source.captions).values())


@pytest.mark.parametrize("shape", SHAPES)
def test_no_shape_passes_for_another(shape):
    hearts, others = TaughtShape("heart", "unseen", 80), Shapes("val", 160)
    assert not ShapesChecker()(pixels(hearts), renamed(hearts.captions, shape))["shape"].any()
    assert not ShapesChecker()(pixels(others), renamed(others.captions, "heart"))["shape"].any()


def test_results_for_the_other_shapes_do_not_depend_on_it(monkeypatch):
    """Also for blurred and noisy pictures, near the limits of the checker."""
    source, draw = Shapes("val", 120), torch.Generator().manual_seed(0)
    noise = torch.randn(120, 3, 32, 32, generator=draw) * torch.linspace(0, 60, 120).view(-1, 1, 1, 1)
    images = (torch.nn.functional.avg_pool2d(pixels(source).float(), 3, 1, 1) + noise).clamp(0, 255).to(torch.uint8)
    captions = [caption for k, caption in enumerate(renamed(source.captions, "star")) if k < 60] + source.captions[60:]
    before = ShapesChecker()(images, captions)
    assert 0 < before["shape"].mean() < 1
    monkeypatch.setattr(shapes_checker, "TAUGHT", ())
    after = ShapesChecker()(images, captions)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_pictures_are_a_function_of_seed_and_split():
    source = TaughtShape("heart", "train", 8)
    whole = source.images(np.arange(8))
    assert np.array_equal(source.images(np.array([5, 2])), whole[[5, 2]])
    unseen = [TaughtShape("heart", "unseen", 8, seed=seed) for seed in (0, 1)]
    assert len({s.fingerprint for s in (source, *unseen)}) == 3
    assert len({s.images(np.arange(8)).tobytes() for s in (source, *unseen)}) == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shape": "star"}, "shape='star' is not one of heart"),
        ({"split": "val"}, "split='val' is not one of train, unseen"),
        ({"count": 0}, "count=0"),
        ({"size": 48}, "data.size=48"),
    ],
    ids=["shape", "split", "count", "size"],
)
def test_what_cannot_be_drawn_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        TaughtShape(**({"shape": "heart", "split": "train", "count": 8} | given))
