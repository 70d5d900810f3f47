"""The watermark: found where it is, uniform p-values where it is not."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy.stats import kstest

from dit.data.shapes import Shapes
from dit.generation.watermark import detect, embed, read_key

KEYS = [bytes([number]) * 32 for number in range(40)]


def noisy_shapes(count: int) -> np.ndarray:
    """Shapes with a little noise, as generated pictures have: (N, 32, 32, 3) uint8."""
    pictures = Shapes("val", count).images(np.arange(count)).transpose(0, 2, 3, 1)
    noise = np.random.default_rng(0).normal(0, 3, pictures.shape)
    return (pictures + noise).round().clip(0, 255).astype(np.uint8)


def jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def test_p_values_of_unmarked_pictures_are_uniform():
    pictures = noisy_shapes(50)
    found = [detect(picture, key).p_value for picture in pictures for key in KEYS[:20]]
    assert kstest(found, "uniform").pvalue > 0.001


def test_p_values_of_pictures_with_another_key_are_uniform():
    found = [detect(embed(p, KEYS[0], 4), key).p_value for p in noisy_shapes(25) for key in KEYS[1:21]]
    assert kstest(found, "uniform").pvalue > 0.001


def test_a_search_for_a_part_gives_no_small_p_values_without_a_mark():
    found = [detect(p[:24, :24], key, size=(32, 32)).p_value for p in noisy_shapes(4) for key in KEYS[:10]]
    assert kstest(found, "uniform", alternative="greater").pvalue > 0.001


@pytest.mark.parametrize("change", [lambda p: p, lambda p: jpeg(p, 95)], ids=["png", "jpeg 95"])
def test_a_marked_picture_is_found(change):
    found = [detect(change(embed(p, KEYS[0], 4)), KEYS[0]).p_value < 1e-6 for p in noisy_shapes(40)]
    assert np.mean(found) >= 0.95


@pytest.mark.parametrize(("axes", "flip"), [((1,), "left-right"), ((0,), "top-bottom"), ((0, 1), "both")])
def test_a_mirrored_picture_is_found(axes, flip):
    found = detect(np.flip(embed(noisy_shapes(1)[0], KEYS[0], 4), axes), KEYS[0])
    assert found.p_value < 1e-6
    assert (found.flip, found.tests) == (flip, 4)


def test_a_part_of_a_picture_is_found_at_its_place():
    picture = np.tile(noisy_shapes(4).reshape(2, 2, 32, 32, 3).transpose(0, 2, 1, 3, 4).reshape(64, 64, 3), 1)
    marked = embed(picture, KEYS[0], 4)
    assert detect(marked[5:61, 3:59], KEYS[0]).p_value > 1e-3
    found = detect(marked[5:61, 3:59], KEYS[0], size=(64, 64))
    assert found.p_value < 1e-6
    assert found.offset == (5, 3)


def test_the_mark_is_a_function_of_picture_and_key_and_small():
    picture = noisy_shapes(1)[0]
    marked = embed(picture, KEYS[0], 4)
    assert np.array_equal(marked, embed(picture, KEYS[0], 4))
    assert not np.array_equal(marked, embed(picture, KEYS[1], 4))
    assert np.sqrt(np.mean((marked.astype(float) - picture) ** 2)) < 4.2


def test_a_picture_of_one_colour_has_no_mark():
    assert detect(np.full((32, 32, 3), 90, np.uint8), KEYS[0]).p_value > 0.5


def test_a_picture_without_a_block_is_refused():
    with pytest.raises(ValueError, match="7 x 20 pixels holds no watermark"):
        embed(np.zeros((20, 7, 3), np.uint8), KEYS[0], 4)
    for size in [(7, 32), (32, 7), (0, 0)]:
        with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} pixels holds no watermark"):
            detect(noisy_shapes(1)[0], KEYS[0], size)


def test_a_short_or_missing_key_is_refused(tmp_path):
    (tmp_path / "key").write_bytes(b"secret")
    with pytest.raises(ValueError, match="has 6 bytes: it must have at least 16"):
        read_key(tmp_path / "key")
    with pytest.raises(ValueError, match="cannot read the key"):
        read_key(tmp_path / "none")
