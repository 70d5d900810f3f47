from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from dit.sample_grid import captioned_grid
from dit.training.previews import Previews

from ..conftest import train_tiny


def read(captions, prompts=None):
    previews = Previews(prompts, recipe=None, every=1)
    pipeline = SimpleNamespace(encode=lambda texts: texts, shape_of=lambda size: size)
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
