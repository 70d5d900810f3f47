"""One row for each data set. A new one in conf/data that needs no path gets every law tested without a row."""

import re

import numpy as np
import pytest
import torch

from dit.data.digits import Digits, DigitsChecker
from dit.data.folder import Folder
from dit.data.huggingface import HuggingFace
from dit.data.parquet import Parquet
from dit.data.shapes import RELATIONS, SPLITS, Shapes, picture_numbers
from dit.data.shapes_checker import OBJECT, ShapesChecker
from dit.data.webdataset import WebDataset

from ..parts import found, target
from .layouts import write_layouts


@pytest.fixture(scope="module")
def picture_folder(tmp_path_factory):
    from PIL import Image

    root = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for name in ("cat", "sea_lion"):
        (root / name).mkdir()
        for i in range(30):
            Image.fromarray(draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    write_layouts(root)
    return root


PHOTOS = {"template": "a photo of a {}", "val_share": 0.3}


SOURCES = {
    "shapes": lambda split, root: Shapes(split, 60),
    "shapes_pairs": lambda split, root: Shapes(split, 60, pairs=True),
    "digits": lambda split, root: Digits(split),
    "folder": lambda split, root: Folder(str(root), 16, split, **PHOTOS),
    "webdataset": lambda split, root: WebDataset(f"{root}/shards/{{00..02}}.tar", 16, split, **PHOTOS),
    "parquet": lambda split, root: Parquet(f"{root}/tables", 16, split, **PHOTOS),
    "huggingface": lambda split, root: HuggingFace(f"{root}/saved", 16, split, **PHOTOS),
}
ELSEWHERE = {  # tested in files of their own
    "dit.data.mixture.Mixture",
    "dit.data.prepared.Prepared",
    "dit.data.subject.Subject",
    "dit.data.taught_shape.TaughtShape",
}
TESTED = ELSEWHERE | {
    f"{kind.__module__}.{kind.__qualname__}" for kind in (Shapes, Digits, Folder, WebDataset, Parquet, HuggingFace)
}


def of_yaml(node):
    options = {key: value for key, value in node.items() if key not in ("_target_", "split")}
    options |= {"count": 60} if "count" in options else {}  # drawn pictures take time
    return lambda split, root: target(node)(split=split, **options)


SOURCES |= {name: of_yaml(node) for name, node in found("data", TESTED).items()}


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
class TestSource:
    def test_pictures_and_captions(self, make, picture_folder):
        source = make("train", picture_folder)
        images = source.images(np.arange(5))
        assert images.dtype == np.uint8
        assert images.ndim == 4
        assert images.shape[:2] == (5, 3)
        assert images.shape[2] == images.shape[3]
        assert len(source.captions) == len(source)
        assert all(isinstance(c, str) and c for c in source.captions)

    def test_an_index_always_gives_the_same_pair(self, make, picture_folder):
        one, other = make("train", picture_folder), make("train", picture_folder)
        index = np.array([3, 0, 7])
        assert np.array_equal(one.images(index), other.images(index))
        assert np.array_equal(one.images(index)[1], one.images(np.array([0]))[0])
        assert one.captions == other.captions
        assert one.fingerprint == other.fingerprint

    def test_held_out_pictures_are_not_in_training(self, make, picture_folder):
        splits = [make(split, picture_folder) for split in ("train", "val")]
        train, val = ({p.tobytes() for p in s.images(np.arange(len(s)))} for s in splits)
        assert not train & val
        assert splits[0].fingerprint != splits[1].fingerprint

    def test_an_unknown_split_is_refused(self, make, picture_folder):
        with pytest.raises(ValueError, match="split='test'"):
            make("test", picture_folder)


@pytest.mark.parametrize("pairs", [False, True], ids=["one", "pairs"])
class TestShapes:
    def test_a_tenth_of_the_scenes_is_never_trained_on(self, pairs):
        trained, unseen = picture_numbers(pairs, unseen=False), picture_numbers(pairs, unseen=True)
        assert not set(trained) & set(unseen)
        assert len(unseen) / (len(trained) + len(unseen)) == pytest.approx(0.1, abs=0.003)
        train, val, never = (set(Shapes(split, 3000, pairs=pairs).captions) for split in SPLITS)
        assert not never & (train | val)

    def test_the_checker_is_right_on_true_pictures_and_not_on_shuffled_captions(self, pairs):
        source = Shapes("val", 500, pairs=pairs)
        images = torch.from_numpy(source.images(np.arange(500)))
        right = np.all(list(ShapesChecker()(images, source.captions).values()), axis=0)
        assert right.mean() >= 0.99
        shuffled = [source.captions[i] for i in np.random.default_rng(0).permutation(500)]
        right = np.all(list(ShapesChecker()(images, shuffled).values()), axis=0)
        assert right.mean() <= 0.01

    def test_the_checker_is_not_fooled_by_noise_and_blanks(self, pairs):
        side = 48 if pairs else 32
        captions = Shapes("val", 40, pairs=pairs).captions
        noise = torch.randint(
            0, 256, (40, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
        for images in (noise, torch.zeros_like(noise), torch.full_like(noise, 128)):
            assert not np.all(list(ShapesChecker()(images, captions).values()), axis=0).any()

    def test_every_attribute_is_checked_independently(self, pairs):
        """Changing one word of the caption makes that attribute wrong, and no other."""
        source = Shapes("val", 200, pairs=pairs)
        images = torch.from_numpy(source.images(np.arange(200)))
        swaps = {"colour": ("red", "blue"), "background": ("on a black", "on a white")}
        swaps |= {"relation": (" left of ", " right of ")} if pairs else {"size": ("large", "small")}
        for attribute, (word, other) in swaps.items():
            rows = [i for i, c in enumerate(source.captions) if c.count(word) == 1 and other not in c and not twins(c)]
            assert rows
            checked = ShapesChecker()(images[rows], [source.captions[i].replace(word, other) for i in rows])
            assert not checked.pop(attribute).any()
            assert np.all(list(checked.values()))


def twins(caption):
    """Two objects that differ in one attribute only: swapped, either the relation or that attribute of both is wrong."""
    objects = re.findall(OBJECT, caption)
    return len(objects) == 2 and sum(a == b for a, b in zip(*objects, strict=True)) >= 2


def test_an_unseen_pair_is_unseen_in_its_other_description():
    mirror = dict(zip(RELATIONS, ("right of", "left of", "below", "above"), strict=True))
    trained = set(Shapes("train", 20_000, pairs=True).captions)
    for caption in Shapes("unseen", 500, pairs=True).captions:
        scene, ground = caption.split(" on a ")
        relation = next(r for r in RELATIONS if f" {r} " in scene)
        first, second = scene.split(f" {relation} ")
        assert f"{second} {mirror[relation]} {first} on a {ground}" not in trained


def test_the_checker_refuses_captions_it_cannot_read():
    with pytest.raises(ValueError, match="a dog"):
        ShapesChecker()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), ["a dog"])


def test_the_digits_are_those_of_scikit_learn_each_once_with_its_name():
    from sklearn.datasets import load_digits

    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    theirs, splits = load_digits(), [Digits("train"), Digits("val")]
    levels = np.rint(theirs.images * 255 / 16).astype(np.uint8)
    expected = {(x.tobytes(), f"a handwritten {names[y]}") for x, y in zip(levels, theirs.target, strict=True)}
    assert [len(source) for source in splits] == [1500, 297]
    found = [(s.images(np.array([i]))[0, 0].tobytes(), s.captions[i]) for s in splits for i in range(len(s))]
    assert set(found) == expected
    assert len(found) == 1797
    assert splits[1].images(np.arange(297)).max() == 255
    shares = [splits[1].captions.count(f"a handwritten {name}") / 297 for name in names]
    assert min(shares) > 0.06, "every digit is held out as often as another"


def test_the_digits_checker_uses_the_mean_of_the_channels_and_refuses_other_captions():
    val = Digits("val")
    images = torch.from_numpy(val.images(np.arange(50)))
    tinted = torch.stack([torch.zeros_like(images[:, 0]), images[:, 1], images[:, 2]], 1)
    checker = DigitsChecker()
    assert checker(tinted, val.captions[:50])["digit"].mean() > 0.9
    with pytest.raises(ValueError, match="'a dog' is not a caption of the digits data"):
        checker(images, [*val.captions[:49], "a dog"])


def test_the_digits_checker_classifies_held_out_digits():
    val = Digits("val")
    images = torch.from_numpy(val.images(np.arange(len(val))))
    checker = DigitsChecker()
    assert checker(images, val.captions)["digit"].mean() > 0.97
    wrong = val.captions[1:] + val.captions[:1]
    differ = np.array(wrong) != np.array(val.captions)
    assert checker(images, wrong)["digit"][differ].mean() < 0.03
