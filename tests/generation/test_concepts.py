"""Concepts in words: a threshold with a stated rate of false alarms, held by the exact labels of shapes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import beta

from dit.cli.calibrate import calibrate as calibrate_command
from dit.data.shapes import BACKGROUNDS, COLOURS, SIZES, Shapes
from dit.data.shapes_checker import detect_objects
from dit.generation.concepts import Concepts, calibrate, encoded, similarity
from dit.metrics.extractors import open_clip_model

from ..conftest import composed

CAPTIONS = [
    f"a {size} {colour} star on a {ground} background" for size in SIZES for colour in COLOURS for ground in BACKGROUNDS
]


@pytest.fixture(scope="module")
def pictures():
    """Shapes, and whether the exact checker finds a star in each."""
    images = Shapes("val", 600).images(np.arange(600))
    stars = [any(o.shape == "star" for o in detect_objects(image.transpose(1, 2, 0))[0]) for image in images]
    return torch.from_numpy(images), np.array(stars)


@pytest.fixture(scope="module")
def folders(pictures, tmp_path_factory):
    images, stars = pictures
    root = tmp_path_factory.mktemp("concepts")
    for place, (image, star) in enumerate(zip(images, stars, strict=True)):
        file = root / ("with" if star else "without") / f"{place}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    return root


def calibrated(folders, out, *words):
    given = ["concept=no star", f"pictures={folders / 'without'}", f"out={out}", "device=cpu"]
    return calibrate_command(composed("calibrate", ["metric/extractor@extractor=shapes_clip", *given, *words]))


def test_the_threshold_is_the_lowest_with_the_stated_rate():
    scores = torch.arange(199) / 199
    found = calibrate(scores, 0.05)
    assert found.threshold == pytest.approx(189 / 199)  # the tenth largest of 199
    assert found.false_alarm_rate == 0.05
    assert found.interval == pytest.approx(beta.interval(0.95, 10, 190))


def test_the_interval_holds_the_true_rate_as_often_as_it_says():
    """1,000 calibrations on 199 uniform scores, whose false-alarm rate above t is 1 - t."""
    draws = torch.from_numpy(np.random.default_rng(0).random((1000, 199)))
    found = [calibrate(scores, 0.05) for scores in draws]
    rates = np.array([1 - one.threshold for one in found])
    assert rates.mean() == pytest.approx(0.05, abs=0.002)
    held = np.mean([low <= rate <= high for rate, (low, high) in zip(rates, (f.interval for f in found), strict=True)])
    assert 0.93 < held < 0.97


def test_no_star_is_measured_by_the_exact_checker(pictures, folders, tmp_path, capsys):
    """Calibrated on half of the pictures without a star; refused are further pictures of stars, and few others."""
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS))
    out = calibrated(folders, tmp_path / "c.json", f"texts={tmp_path / 'captions.txt'}", f"examples={folders / 'with'}")
    assert "of 124 pictures with it 100.00% [97.00%, 100.00%] are refused" in capsys.readouterr().out
    rule = Concepts(str(out), open_clip_model("shapes_clip"), device="cpu")
    images = torch.from_numpy(Shapes("val", 1200).images(np.arange(600, 1200)))
    stars = np.array([any(o.shape == "star" for o in detect_objects(i.permute(1, 2, 0).numpy())[0]) for i in images])
    refused = np.array([not verdict.allowed for verdict in rule.check_pictures(images)])
    low, high = rule.concepts[0].threshold.interval
    assert refused[stars].mean() > 0.99
    assert refused[~stars].mean() <= 2 * high
    [why] = {verdict.reason.split(":")[0] for verdict in rule.check_pictures(images) if not verdict.allowed}
    assert why == "'no star'"
    assert 0 < low < 0.01 < high


def test_several_concepts_are_kept_in_one_file(folders, tmp_path):
    calibrated(folders, tmp_path / "c.json", "concept=no circle", "rate=0.5")
    calibrated(folders, tmp_path / "c.json", "texts=[a star]")
    calibrated(folders, tmp_path / "c.json", "texts=[a star]", "rate=0.1")
    held = json.loads((tmp_path / "c.json").read_text())["concepts"]
    assert list(held) == ["no circle", "no star"]
    assert held["no circle"]["texts"] == ["circle"]
    assert held["no star"]["false_alarm_rate"] == pytest.approx(0.1, abs=0.003)


def test_the_score_is_the_largest_cosine_of_the_texts(pictures):
    clip, images = open_clip_model("shapes_clip"), pictures[0][:8]
    both, one, other = (
        similarity(clip, images, encoded(clip, texts)) for texts in (["a star", "a circle"], ["a star"], ["a circle"])
    )
    torch.testing.assert_close(both, torch.maximum(one, other))


@pytest.mark.parametrize(
    ("rate", "message"), [(0.001, "give at least 999"), (0.0, "between 0 and 1"), (1.0, "between")]
)
def test_a_rate_that_cannot_be_calibrated_is_refused(rate, message):
    with pytest.raises(ValueError, match=message):
        calibrate(torch.rand(100), rate)


@pytest.mark.parametrize(("content", "message"), [
    ("{", "is not JSON"),
    ("[]", "is not a file of calibrated concepts"),
    ('{"model": "x", "concepts": {}}', "has no concepts"),
    ('{"model": "x", "concepts": {"no star": {"threshold": 0.5}}}', "is not a file of calibrated concepts"),
    ('{"model": "x", "concepts": {"a": {"texts": ["a"], "threshold": 0, "false_alarm_rate": 0, "interval": [0, 1], "pictures": 9}}}',
     "calibrated with another model"),
    (None, "cannot read"),
])  # fmt: skip
def test_an_unreadable_file_of_concepts_is_one_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "c.json").write_text(content)
    with pytest.raises(ValueError, match=message) as refused:
        Concepts(str(tmp_path / "c.json"), open_clip_model("shapes_clip"))
    assert "\n" not in str(refused.value)
