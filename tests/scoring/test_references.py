"""Which pictures are judged, and against which: random ones, always the same."""

import numpy as np
import pytest
import torch
from PIL import Image

from dit.code_digest import foreign_code
from dit.data.picture_folder import PicturesLayout
from dit.data.shapes import Shapes
from dit.data.source import Images
from dit.evaluation.card import Card
from dit.evaluation.floors import floors
from dit.evaluation.likelihood import BitsPerDim
from dit.evaluation.model_description import code_outside
from dit.evaluation.selftest import self_test
from dit.evaluation.sources import given_pictures
from dit.evaluation.sweep import Protocol, Sweep
from dit.metrics.base import ImageMetric, MetricResult
from dit.metrics.frechet import FrechetDistance
from dit.picture_files import Rules, save_png
from dit.plain_values import plain
from dit.scoring.prompts import held_out_prompts
from dit.scoring.references import (
    protocol_fields,
    reference_count,
    rules_of_training,
    subset_indices,
    update_references,
)

from ..conftest import composed
from ..metrics.every import Pixels, random_pictures


class Sorted:
    """50 classes of 20 pictures, sorted by class as folders are."""

    captions = [f"class {i // 20}" for i in range(1000)]
    fingerprint = "sorted"

    def __init__(self):
        self.looked = []
        self.pictures = random_pictures(1000, seed=3).numpy()

    def __len__(self):
        return 1000

    def images(self, index):
        self.looked.append(np.asarray(index))
        return self.pictures[index]


def test_held_out_prompts_are_of_all_classes_and_those_of_fewer_come_first():
    prompts = held_out_prompts(Sorted.captions, 100)
    assert len(set(prompts)) > 35, "the first 100 in the order of their paths are of 5 classes"
    assert held_out_prompts(Sorted.captions, 30) == prompts[:30]
    assert held_out_prompts(["a", "b", "c"], 7)[:3] == held_out_prompts(["a", "b", "c"], 7)[3:6]
    assert sorted(held_out_prompts(["a", "b", "c"], 3)) == ["a", "b", "c"]


def test_a_larger_part_of_the_pictures_holds_the_smaller_one():
    few, many = subset_indices(1000, 100), subset_indices(1000, 300)
    assert set(few) < set(many)
    assert (np.diff(few) > 0).all()
    assert few.max() > 900
    assert subset_indices(7, 9).tolist() == list(range(7)), "all, in their own order"


def test_references_and_floors_are_random_and_have_no_picture_in_common(tmp_path):
    source, metric = Sorted(), FrechetDistance("fd", Pixels())
    update_references([metric], {"val": source}, {"val": 200}, tmp_path)
    references = np.concatenate(source.looked)
    assert sorted(references) == subset_indices(1000, 200).tolist()
    source.looked.clear()
    card = protocol_fields(["a"] * 50, 0, (2, 2), {"val": source}, {"val": 200})
    sweep = Sweep({"fd": metric}, Protocol(card, {}, ["a"] * 50, 0, 0), tmp_path / "out", lambda: None)
    made = floors(sweep, source, 200, 16, None)
    floor = np.concatenate(source.looked)
    assert len(floor) == 50
    assert not {*floor} & {*references}
    assert len({place // 20 for place in floor}) > 25
    assert made["real"].scores.keys() == {"fd_50"}


def test_a_protocol_says_how_references_were_chosen():
    source = Sorted()
    of = {
        count: protocol_fields(["a"], 0, (2, 2), {"val": source}, {"val": count})["reference"]["val"]
        for count in (10, 2000)
    }
    rules = {"resize": "none, as the source gives them", "crop": "none", "flip": "none"}
    assert of[10] == {"pictures": "sorted", "count": 10, "chosen": "random subset, key 0", **rules}
    assert of[2000] == {"pictures": "sorted", "count": 1000, "chosen": "all", **rules}


@pytest.mark.parametrize(
    ("rules", "resize", "crop"),
    [
        (
            {},
            "to 6x4, halved with a box filter while at least twice too large, then scaled bicubically (adm)",
            "largest",
        ),
        (
            {"resize": "lanczos", "crop": "none"},
            "to 6x4, scaled once with Pillow's antialiased lanczos filter",
            "whole",
        ),
    ],
)
def test_a_protocol_says_in_words_how_references_were_resized_and_cropped(tmp_path, rules, resize, crop):
    save_png(Image.new("RGB", (12, 9)), tmp_path / "a.png")
    source = Images(PicturesLayout(str(tmp_path)), PicturesLayout(str(tmp_path)).rows(None), (6, 4), Rules(**rules))
    found = protocol_fields(["a"], 0, (6, 4), {"val": source}, {"val": 1})
    assert found["size"] == [6, 4]
    assert found["reference"]["val"]["resize"] == resize
    assert crop in found["reference"]["val"]["crop"]
    assert found["reference"]["val"]["flip"] == "none"


def test_a_part_of_given_pictures_is_a_random_one_with_its_own_prompts():
    source = Sorted()
    chosen = subset_indices(1000, 10)
    made = list(given_pictures(source, [source.captions[i] for i in chosen], 4))
    assert np.concatenate(source.looked).tolist() == chosen.tolist()
    assert [prompt for part in made for prompt in part.prompts] == [source.captions[i] for i in chosen]


class Mean(ImageMetric):
    """A sound agreement with prompts that keeps what it was shown."""

    headlines = {"mean": True}

    def __init__(self):
        super().__init__()
        self.shown = []

    def update_samples(self, images, prompts):
        self.shown.append(list(prompts))

    def compute_scores(self):
        return MetricResult({"mean": float(len(self.shown) % 2)}, {})


def test_the_self_test_and_bits_per_dim_look_at_random_pictures(tmp_path, monkeypatch):
    source, metric = Sorted(), Mean()
    self_test({"mean": metric}, {"mean": {}}, source, tmp_path)
    assert len(set(metric.shown[0])) > 12, "the first 16 are of one class"
    from dit.evaluation import likelihood

    monkeypatch.setattr(likelihood, "log_likelihood", lambda denoise, x, points, signs: torch.zeros(len(x)))
    from ..test_pipeline import pipeline

    pictures = Shapes("val", 60)
    looked = []
    monkeypatch.setattr(
        Shapes, "images", lambda self, index, see=Shapes.images: looked.append(index) or see(self, index)
    )
    pipe = pipeline()
    from dit.diffusion.time import UniformTime
    from dit.encoders.text import WordEncoder

    pipe.text_encoder = WordEncoder(sorted({word for caption in pictures.captions for word in caption.split()}))
    BitsPerDim(UniformTime(0.99), 2, 10)(pipe, pictures, 0, 4)
    assert np.concatenate(looked).max() > 20


@pytest.mark.parametrize(("n", "references", "column"), [
    (100, 1024, "fid_100"), (1024, 1024, "fid_1024"), (50_000, 1024, "fid_50k_ref1024"),
    (50_000, 10_000, "fid_50k_ref10k"), (50_000, 50_000, "fid_50k"), (50_000, None, "fid_50k"),
])  # fmt: skip
def test_fewer_references_than_pictures_stand_in_the_name(n, references, column):
    assert FrechetDistance("fid", Pixels()).column("fid", n, references) == column


@pytest.mark.parametrize(
    ("words", "resize", "crop", "flip"),
    [
        (["data=folder", "data.path=DIR", "data.resize=lanczos"], "to 32x32, scaled once", "the largest centred", "none"),
        (["data=folder", "data.path=DIR", "data.crop=none", "data.flip=true"], "to 32x32, halved", "whole", "each use"),
        (["data=buckets", "data.path=DIR"], "to the nearest in aspect ratio of diffusers' sizes of about 512x512, with "
         "sides that 16 divides, halved", "the largest centred part with the shape of the result", "none"),
        (["data=shapes"], "none, as the source gives them", "none", "none"),
        (["data=prepared", "data.path=DIR"], "by dit-prepare, as prepare.yaml", "by dit-prepare", "none"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_the_rules_of_training_pictures_in_words(words, resize, crop, flip):
    found = rules_of_training(plain(composed("train", words))["data"])
    assert found.keys() == {"resize", "crop", "flip"}
    assert found["resize"].startswith(resize)
    assert crop in found["crop"]
    assert found["flip"].startswith(flip)


def test_the_rules_of_a_mixture_are_those_of_its_sources():
    sources = {"a": {"rules": {"crop": "none"}}, "b": {}}
    found = rules_of_training({"size": 64, "module": {}, "sources": sources, "flip": False})
    assert found["a"]["crop"].startswith("the whole picture")
    assert found["b"]["crop"].startswith("the largest centred part")
    assert found["b"]["resize"].startswith("to 64x64, halved")


def test_a_sweep_names_its_columns_as_the_metrics_do_and_warns_of_few_references(tmp_path):
    source = Sorted()
    card = protocol_fields(["a"] * 50, 0, (2, 2), {"val": source}, {"val": 8})
    metric = FrechetDistance("fd", Pixels())
    sweep = Sweep({"fd": metric}, Protocol(card, {}, ["a"] * 50, 0, 0), tmp_path, lambda: None)
    update_references([metric], {"val": source}, {"val": 8}, tmp_path)
    metric.update(random_pictures(50, seed=5))
    assert [*metric.compute()] == [*sweep.headlines(50)] == ["fd_50_ref8"]
    few, fewer = sweep.notes
    assert few.startswith("fd_50_ref8: 8 references are fewer than its 12 features")
    assert fewer.startswith("fd_50_ref8: 8 references are fewer than the 50 pictures: not comparable with published")
    enough = protocol_fields(["a"] * 50, 0, (2, 2), {"val": source}, {"val": 100})
    assert Sweep({"fd": metric}, Protocol(enough, {}, ["a"] * 50, 0, 0), tmp_path / "b", lambda: None).notes == []


def test_code_from_outside_is_named_by_what_its_file_does(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    digests = []
    for text in ("def walk(): return 1\n", "def walk(): return 1  # why\n", "def walk(): return 2\n"):
        (tmp_path / "outside_part.py").write_text(text)
        import outside_part

        digests.append(foreign_code(outside_part.walk, FrechetDistance, Pixels().extract, len))
    assert code_outside(
        {"sampler": [{"_target_": "outside_part.walk"}, {"_target_": "dit.scoring.samples.score_samples"}]}
    ) == {"outside_part.walk": digests[2]["outside_part.walk"]}
    assert digests[0] == digests[1]
    assert digests[0]["outside_part.walk"] != digests[2]["outside_part.walk"]
    assert not any(name.startswith("dit.") for name in digests[0])


def test_what_was_learnt_by_other_code_is_not_used(tmp_path, monkeypatch):
    from dit.scoring import references

    source = Sorted()
    for code, looks in (("one", True), ("one", False), ("two", True)):
        monkeypatch.setattr(references, "code_digest", lambda *rooms, code=code: code)
        source.looked.clear()
        update_references([FrechetDistance("fd", Pixels())], {"val": source}, {"val": 20}, tmp_path)
        assert bool(source.looked) == looks


def test_a_metric_is_tested_again_when_code_changed(tmp_path, monkeypatch):
    from dit.evaluation import selftest

    for code, tests in (("one", 2), ("one", 0), ("two", 2)):
        monkeypatch.setattr(selftest, "code_digest", lambda *rooms, code=code: code)
        metric = Mean()
        self_test({"mean": metric}, {"mean": {}}, Sorted(), tmp_path)
        assert len(metric.shown) == tests


def test_a_cell_of_other_code_is_made_again(tmp_path):
    from dit.evaluation.sweep import Cell
    from dit.scoring.samples import SampleBatch

    metric, made = FrechetDistance("fd", Pixels()), []
    update_references([metric], {"val": Sorted()}, {"val": 100}, tmp_path)

    def pictures(seed, done):
        made.append(seed)
        yield SampleBatch(random_pictures(8, seed=1), ["a"] * 8, range(8))

    card = protocol_fields(["a"] * 8, 0, (2, 2), {"val": Sorted()}, {"val": 100})
    for code, count in (("one", 1), ("one", 1), ("two", 2)):
        protocol = Protocol(card, {"code": code}, ["a"] * 8, 0, 0)
        (tmp_path / "out" / "protocol.json").unlink(missing_ok=True)
        sweep = Sweep({"fd": metric}, protocol, tmp_path / "out", lambda: None)
        [found] = sweep.run([Cell({"images": "x", "size": "2x2"}, pictures)])
        assert isinstance(found, Card)
        assert len(made) == count


@pytest.mark.parametrize(("total", "n", "given", "expected"), [
    (5000, 100, None, 1024), (1124, 100, None, 1024), (1100, 100, None, 1000), (60, 100, None, 30), (61, 100, None, 31),
    (150, 50, None, 100), (60, 100, 60, 60), (60, 100, 1024, 60), (5000, 100, 32, 32), (1, 100, None, 1),
])  # fmt: skip
def test_few_real_pictures_are_divided_between_references_and_floor(total, n, given, expected):
    assert reference_count(total, n, given) == expected
