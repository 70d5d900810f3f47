from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dit.sample_grid import captioned_grid
from dit.training.previews import Previews

from ..conftest import train_tiny


class Split:
    """Captions with a picture each, whose grey value is its place."""

    def __init__(self, captions, first=0):
        self.captions, self.first = captions, first

    def images(self, index):
        return np.stack([np.full((3, 8, 8), self.first + i, dtype=np.uint8) for i in index])


class Latents(Split):
    """A split of latents without pictures."""

    images = None


def previews_of(train, val, prompts=None):
    previews = Previews(prompts, recipe=None, every=1)
    pipeline = SimpleNamespace(encode=lambda texts: texts, shape_of=lambda size: size)
    previews.read(pipeline, SimpleNamespace(train=Split(train), val=Split(val, 100)))
    return previews


def test_half_are_training_captions_and_half_held_out_ones():
    """At random: a folder is sorted by class, and its first captions are only of the first classes."""
    train = [f"class {i}" for i in range(40) for _ in range(2)]
    val = [f"class {i}" for i in range(40, 60)]
    shown = previews_of(train, val)
    assert len(set(shown.prompts)) == 12
    assert set(shown.prompts[:6]) <= set(train)
    assert set(shown.prompts[6:]) <= set(val)
    assert shown.prompts == previews_of(train, val).prompts
    assert max(int(caption.split()[1]) for caption in shown.prompts[:6]) > 20
    assert previews_of(train, val, ["dog"]).prompts == ["dog"]
    assert previews_of(["cat", "dog", "cat"], ["dog"]).prompts == ["cat", "dog", "dog"]


def test_each_sample_is_beside_the_real_picture_of_its_caption():
    previews = previews_of(["a cat", "a dog"], ["a zebra"])
    assert [(name, int(picture[0, 0, 0])) for name, picture in previews.real] == [
        ("training picture", previews_of(["a cat"], ["a dog"]).real[0][1][0, 0, 0] + ["a cat", "a dog"].index(caption))
        for caption in previews.prompts[:2]
    ] + [("held-out picture", 100)]
    sheet = np.asarray(previews.grid(torch.full((3, 3, 16, 16), 200, dtype=torch.uint8)))
    row = sheet[70, 10:]  # the middle of the first row of tiles: real, sample, real, sample, ...
    assert list(row[64 + 134 * np.arange(6), 0]) == [
        int(previews.real[0][1][0, 0, 0]),
        200,
        int(previews.real[1][1][0, 0, 0]),
        200,
        100,
        200,
    ]


def test_words_that_training_never_contained_are_marked():
    previews = previews_of(["a red cat"], ["a Red zebra, a cat"])
    assert previews.texts == ["a red cat", "a Red *zebra*, a cat (*not in training*)"]
    assert previews.prompts == ["a red cat", "a Red zebra, a cat"]


def test_an_asterisk_of_a_caption_marks_no_word():
    captions = ["a *red* cat", "5 * 5 tiles"]
    assert sorted(previews_of(captions, captions[:1]).texts[:2]) == sorted(captions)


def test_without_pictures_of_one_split_samples_stand_alone(monkeypatch):
    monkeypatch.setattr("dit.training.previews.Prepared", Latents)
    data = SimpleNamespace(train=Latents(["a cat", "a dog"]), val=Split(["a zebra"]))
    previews = Previews(None, recipe=None, every=1)
    previews.choose(data)
    assert len(previews.prompts) == 3
    samples = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    plain = captioned_grid(samples, previews.texts, previews.columns)
    assert np.array_equal(np.asarray(previews.grid(samples)), np.asarray(plain))


def test_a_model_without_captions_shows_as_many_pictures():
    previews = previews_of([""] * 30, [""] * 30)
    assert previews.prompts == [""] * 12
    assert not previews.real


def test_previews_of_several_sizes_have_a_sheet_each(tmp_path):
    prompts = "data.prompts=[a large red star on a black background]"
    run = train_tiny(
        tmp_path / "run", "callbacks.previews.size=[[32,32],[48,32]]", "callbacks.previews.every=6", prompts
    )
    widths = {file.name: Image.open(file).width for file in (run / "samples").iterdir()}
    assert set(widths) == {"step_0000006_32x32.png", "step_0000006_48x32.png"}
    tiles = {32: 128, 48: 144}  # enlarged by a whole number to at least 128 pixels; six columns with gaps of 6
    assert widths == {f"step_0000006_{width}x32.png": 6 * (tile + 6) + 6 for width, tile in tiles.items()}


@pytest.mark.parametrize("size", [[48], [48, 0], [[48, 32], [32]], []], ids=str)
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(ValueError, match=r"callbacks\.previews\.size"):
        Previews(None, recipe=None, every=1, size=size)


def test_a_long_caption_leaves_the_sheet_small():
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    sheet = captioned_grid(images, ["word " * 2000, "w" * 10_000], columns=2)
    assert sheet.height < 300
    assert captioned_grid(images, ["a", "b"], columns=2).height < sheet.height
