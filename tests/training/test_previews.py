from types import SimpleNamespace

import torch

from dit.sample_grid import captioned_grid
from dit.training.previews import Previews


def read(captions, prompts=None):
    previews = Previews(prompts, recipe=None, every=1)
    pipeline = SimpleNamespace(encode=lambda texts: texts)
    previews.read(pipeline, SimpleNamespace(val=SimpleNamespace(captions=captions)))
    return previews.prompts


def test_held_out_captions_are_a_random_part_of_all():
    """A folder is sorted by class: its first captions are only of the first classes."""
    captions = [f"class {i}" for i in range(50) for _ in range(10)]
    shown = read(captions)
    assert len(shown) == len(set(shown)) == 12
    assert shown == read(captions)
    assert max(int(caption.split()[1]) for caption in shown) > 25
    assert read(["cat", "dog", "cat"], ["dog"]) == ["dog"]
    assert sorted(read(["cat", "dog", "cat"])) == ["cat", "dog"]


def test_a_model_without_captions_shows_as_many_pictures():
    assert read([""] * 30) == [""] * 12


def test_a_long_caption_leaves_the_sheet_small():
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    sheet = captioned_grid(images, ["word " * 2000, "w" * 10_000], columns=2)
    assert sheet.height < 300
    assert captioned_grid(images, ["a", "b"], columns=2).height < sheet.height
