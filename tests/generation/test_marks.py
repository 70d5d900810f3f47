"""A mark is claimed where its measured power and its picture allow it, and refused elsewhere."""

import json

import numpy as np
import pytest
import torch

from dit.generation.delivery import Delivery
from dit.generation.encoding import Encoding
from dit.generation.mark_card import CHANGES, FORMAT, demand_power, psnr, scaled
from dit.generation.marked import Marked, warn_of_unmarked
from dit.generation.marks import Mark, Pattern
from dit.generation.watermark import detect, embed
from dit.generation.work import Job

from .test_watermark import noisy_shapes

ABOUT = {"model": "RUN", "weights": "abc", "recipe": {"steps": 4}}


@pytest.fixture
def key(tmp_path):
    (tmp_path / "key").write_bytes(bytes(32))
    return str(tmp_path / "key")


def write_card(path, mark, low=0.95, size=(32, 32), **changes):
    power = {"as delivered": {"share": 0.98, "interval": [low, 1.0]}}
    entry = {**ABOUT, "size": list(size), "encoding": {"kind": "png"}, "power": power, **changes}
    path.write_text(json.dumps({"format": FORMAT, "mark": mark.settings, "entries": [entry]}))
    mark.card = str(path)
    return mark


def test_a_mark_needs_a_card_of_its_model_its_size_and_its_settings(key, tmp_path):
    card = tmp_path / "card.json"
    with pytest.raises(
        ValueError, match=r"is not known; measure it: the same command with marks.card=FILE and measure"
    ):
        demand_power(Pattern(key, 2), ABOUT, (32, 32))
    demand_power(write_card(card, Pattern(key, 2)), ABOUT, (32, 32))
    for mark, about, size, fault in [
        (Pattern(key, 3, str(card)), ABOUT, (32, 32), "is of the mark"),
        (Pattern(key, 2, str(card), 1e-3), ABOUT, (32, 32), "is of the mark"),
        (
            Pattern(key, 2, str(card)),
            ABOUT | {"weights": "other"},
            (32, 32),
            "no entry with the weights and size of RUN",
        ),
        (Pattern(key, 2, str(card)), ABOUT, (48, 32), "no entry .* at 48x32"),
        (Pattern(key, 2, str(tmp_path / "none")), ABOUT, (32, 32), "cannot read"),
    ]:
        with pytest.raises(ValueError, match=fault):
            demand_power(mark, about, size)
    demand_power(Pattern(key, 2, str(card)), ABOUT | {"recipe": None}, (32, 32))  # any recipe
    whole = json.loads(card.read_text())
    [entry] = whole["entries"]
    broken = [{**entry, "power": power} for power in ({}, [], {"as delivered": {"share": 1, "interval": [1]}})]
    broken += [
        {name: entry[name] for name in entry if name != left} for left in ("weights", "size", "encoding", "power")
    ]
    broken += [None]
    for content in ([], {**whole, "entries": None}, *({**whole, "entries": [one]} for one in broken)):
        card.write_text(json.dumps(content))
        with pytest.raises(ValueError, match="is not a card of a watermark of this version; measure it"):
            demand_power(Pattern(key, 2, str(card)), ABOUT, (32, 32))


def test_a_card_of_png_files_says_nothing_of_jpeg_files(key, tmp_path):
    mark, coarse = write_card(tmp_path / "card", Pattern(key, 2)), Encoding("jpeg", 30)
    delivery = Marked(Delivery(), mark, coarse)
    with pytest.raises(ValueError, match="no entry with the weights and size of RUN at 32x32 in jpeg 30 files"):
        delivery.check_model(ABOUT, (32, 32))
    write_card(tmp_path / "card", mark, encoding={"kind": "jpeg", "quality": 30})
    delivery.check_model(ABOUT, (32, 32))
    write_card(tmp_path / "card", mark, low=0.1, encoding={"kind": "jpeg", "quality": 30})
    with pytest.raises(ValueError, match="is refused for RUN at 32x32: in jpeg 30 files"):
        delivery.check_model(ABOUT, (32, 32))


def test_pictures_without_the_mark_are_counted(capsys):
    rows = [{"file": "a", "watermark": None}, {"file": "b", "watermark": {}}, {"refused": "c"}, {"file": "d"}]
    warn_of_unmarked(rows)
    assert "the watermark is not found in 1 of 2 pictures" in capsys.readouterr().err
    warn_of_unmarked(rows[1:])
    assert capsys.readouterr().err == ""


def test_a_mark_that_is_not_found_in_png_files_is_refused(key, tmp_path):
    demand_power(write_card(tmp_path / "a", Pattern(key, 2), low=0.9), ABOUT, (32, 32))
    with pytest.raises(
        ValueError, match=r"refused for RUN at 32x32: .* 0.980 \[0.899, 1.000\] is found .* at least 0.9"
    ):
        demand_power(write_card(tmp_path / "a", Pattern(key, 2), low=0.899), ABOUT, (32, 32))


class InNoise(Mark):
    kind, in_noise = "noise", True


def test_the_card_of_a_mark_in_the_noise_also_has_the_recipe(key, tmp_path):
    mark = write_card(tmp_path / "card", InNoise(key))
    demand_power(mark, ABOUT, (32, 32))
    for about, fault in [
        (ABOUT | {"recipe": {"steps": 5}}, "no entry with the weights, recipe and size"),
        (ABOUT | {"recipe": None}, "cannot be used for the server"),
        (ABOUT | {"edit": {"strength": 1}}, "cannot be used for edited pictures"),
    ]:
        with pytest.raises(ValueError, match=fault):
            demand_power(mark, about, (32, 32))


def test_a_row_claims_the_mark_only_if_it_is_found_in_the_picture(key):
    pixels = torch.from_numpy(noisy_shapes(2)).permute(0, 3, 1, 2)
    jobs = [Job(row, "", 0, None, "", row) for row in range(2)]
    for amplitude, claimed in [(4, True), (0.001, False)]:
        delivery = Marked(Delivery(), Pattern(key, amplitude))
        marked = delivery.mark(jobs, pixels)
        assert marked.shape == pixels.shape
        for before, after in zip(pixels, marked, strict=True):
            expected = embed(before.permute(1, 2, 0).numpy(), bytes(32), amplitude)
            assert np.array_equal(after.permute(1, 2, 0).numpy(), expected)
            row = delivery.describe(after)["watermark"]
            assert (row is not None) == claimed
            if claimed:
                assert row["p_value"] < row["rate"] == 1e-6
                assert row["amplitude"] == amplitude
        assert list(delivery.seeded(jobs)) == jobs


def test_a_resized_picture_is_found_with_its_original_size(key):
    picture = np.tile(noisy_shapes(1)[0], (3, 3, 1))
    for factor in (0.75, 1.5):
        changed = scaled(embed(picture, bytes(32), 4), factor)
        assert detect(changed, bytes(32)).p_value > 1e-4
        found = detect(changed, bytes(32), (96, 96))
        assert found.p_value < 1e-6
        assert found.resized


def test_the_changes_of_a_card_change_what_they_say():
    picture = noisy_shapes(1)[0]
    sizes = {name: change(picture).shape[:2] for name, change in CHANGES.items()}
    assert sizes.pop("cropped to 75 %") == sizes.pop("resized to 75 %") == (24, 24)
    assert sizes.pop("resized to 150 %") == (48, 48)
    assert set(sizes.values()) == {(32, 32)}
    ratios = [psnr(picture, CHANGES[name](picture)) for name in ("as delivered", "jpeg 95", "jpeg 75", "jpeg 50")]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] == np.inf
    assert psnr(np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)) == 0


def test_settings_out_of_range_are_refused(key):
    with pytest.raises(ValueError, match=r"marks.amplitude=0 must be above 0"):
        Pattern(key, 0)
    with pytest.raises(ValueError, match=r"marks.rate=0.95: the rate .* above 0 and at most 0.001"):
        Pattern(key, 0.001, rate=0.95)
