"""Scenes and their checker: real pictures pass, pictures of other scenes and damaged ones fail."""

import re

import numpy as np
import pytest
import torch

from dit.data.scenes import COLOURS, OBJECTS, SIDE, TEXTURES, Scenes, held_out
from dit.data.scenes_checker import GRAMMAR, ScenesChecker, detect_objects
from dit.data.shapes import SHAPES
from dit.encoders.autoencoder import PretrainedAutoencoder
from dit.types import from_pixels, to_pixels

CHECK = ScenesChecker()


def checked(images, captions):
    return CHECK(torch.from_numpy(np.ascontiguousarray(images)), captions)


def right(images, captions):
    return np.stack(list(checked(images, captions).values())).all(0)


@pytest.mark.parametrize("split", ["train", "val", "unseen"])
def test_every_real_picture_passes(split):
    source = Scenes(split, 80)
    assert right(source.images(np.arange(80)), source.captions).all()


def test_no_picture_passes_for_another_caption_and_one_changed_word_is_found():
    source = Scenes("val", 100)
    images = source.images(np.arange(100))
    assert not right(images, source.captions[1:] + source.captions[:1]).any()
    for name, words in {"texture": TEXTURES, "colour": tuple(COLOURS), "shape": SHAPES}.items():
        following = dict(zip(words, words[1:] + words[:1], strict=True))
        changed = [" ".join(replaced(caption.split(), following)) for caption in source.captions]
        result = checked(images, changed)
        assert not result[name].any(), name
        assert all(result[other].mean() > 0.9 for other in result if other not in (name, "relation")), name


def replaced(words, following):
    """The caption with its first of these words changed."""
    place = next(i for i, word in enumerate(words) if word in following)
    return [*words[:place], following[words[place]], *words[place + 1 :]]


def test_the_opposite_relation_is_wrong():
    source = Scenes("val", 60, triples=0.0)
    images = source.images(np.arange(60))
    turned = [
        c.replace("above", "UP").replace("below", "above").replace("UP", "below")
        if "above" in c or "below" in c
        else c.replace("left of", "X").replace("right of", "left of").replace("X", "right of")
        for c in source.captions
    ]
    alike = np.array([a == b for a, b in ((g[0:3], g[4:7]) for g in (GRAMMAR.fullmatch(c).groups() for c in turned))])
    assert not right(images, turned)[~alike].any()


def test_a_wrong_second_relation_is_found():
    source = Scenes("val", 60, triples=1.0)
    opposite = {"left of": "right of", "right of": "left of"}
    turned = [re.sub(r"(?<= and )(left of|right of)", lambda m: opposite[m[0]], c) for c in source.captions]
    parts = [GRAMMAR.fullmatch(caption).groups() for caption in turned]
    alike = np.array([g[0:3] == g[8:11] for g in parts])  # either of the two may be the first object
    assert not right(source.images(np.arange(60)), turned)[~alike].any()


def damaged(picture, kind):
    picture = picture.astype(np.float64)
    if kind == "blurred":
        from scipy.ndimage import gaussian_filter

        return gaussian_filter(picture, (0, 2.5, 2.5))
    if kind == "an object more":
        picture[:, :6, :6] = np.array([222.0, 36, 36])[:, None, None]
    if kind == "half transparent":
        ground = picture[:, :1, :1]
        return ground + 0.5 * (picture - ground)
    if kind == "cut through":  # grey rows through every object
        picture[:, 14:20] = picture[:, 46:52] = picture[:, :1, :1]
    return picture


@pytest.mark.parametrize("kind", ["blurred", "an object more", "half transparent", "cut through"])
def test_damaged_pictures_fail(kind):
    source = Scenes("val", 60, triples=1.0)
    images = np.stack([damaged(p, kind) for p in source.images(np.arange(60))])
    assert right(np.rint(images).astype(np.uint8), source.captions).mean() <= 0.1


def test_noise_and_flat_pictures_have_no_object_that_is_right():
    draw = np.random.default_rng(0)
    for image in (np.zeros((SIDE, SIDE, 3)), draw.integers(0, 256, (SIDE, SIDE, 3))):
        found, _ = detect_objects(image.astype(np.uint8))
        assert not any(o.texture and o.colour and o.shape for o in found)


def test_training_never_draws_a_held_out_caption_nor_its_other_description():
    train = set(Scenes("train", 3000).captions)
    unseen = Scenes("unseen", 3000)
    assert not train & set(unseen.captions)
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    pairs = [GRAMMAR.fullmatch(c).groups() for c in unseen.captions if " and " not in c]
    assert len(pairs) > 1000
    other = {f"a {' '.join(g[4:7])} {opposite[g[3]]} a {' '.join(g[0:3])} on a {g[11]} background" for g in pairs}
    assert not train & other


def test_a_tenth_of_all_captions_is_held_out():
    draw = np.random.default_rng(0)
    n = 20_000
    three = draw.integers(0, 2, n).astype(bool)
    relations = np.stack([np.where(three, 2, 0) + draw.integers(0, 2, n), draw.integers(0, 2, n)], 1)
    held = held_out(draw.integers(0, len(OBJECTS), (n, 3)), relations, draw.integers(0, 3, n), three)
    assert held.mean() == pytest.approx(0.1, abs=0.01)


def test_the_share_of_scenes_with_three_objects():
    for share in (0.0, 0.25, 1.0):
        captions = Scenes("train", 800, triples=share).captions
        assert np.mean([" and " in c for c in captions]) == pytest.approx(share, abs=0.05)


def test_the_shipped_autoencoder_keeps_what_captions_say():
    source = Scenes("val", 96)
    images = torch.from_numpy(source.images(np.arange(96)))
    autoencoder = PretrainedAutoencoder("scenes_autoencoder", slice_size=32)
    decoded = to_pixels(autoencoder.decode(autoencoder.encode(from_pixels(images))))
    assert right(decoded.numpy(), source.captions).mean() > 0.9


def test_bad_input_is_one_line():
    for options, text in (({"triples": 1.5}, "triples=1.5"), ({"count": 0}, "count=0"), ({"split": "x"}, "split='x'")):
        with pytest.raises(ValueError, match=text):
            Scenes(**({"split": "train", "count": 1} | options))
    with pytest.raises(ValueError, match="not a caption of the scenes data"):
        CHECK(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8), ["a large red star on a black background"])
    with pytest.raises(ValueError, match="pictures of 64x64 pixels, and these are 32x32"):
        CHECK(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), [Scenes("val", 1).captions[0]])
