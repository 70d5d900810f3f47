"""Data sets from a model: balanced, filtered, without duplicates, with rejects and their reasons."""

import json
import multiprocessing
import os
import signal
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from tqdm import tqdm

from dit.data.digits import Digits
from dit.generation.delivery import Delivery
from dit.generation.duplicates import MEASURES, Duplicates, Pdq, Thumbnail, by_caption
from dit.generation.output import Output, rows_in
from dit.generation.policy import Decision
from dit.generation.synthesis import Filter, Quotas, Synthesis
from dit.generation.synthetic_card import card_of, unfilled
from dit.generation.writers import WRITERS

CAPTIONS = ["bright", "dark", "never right"]


def noise(*keys):
    coarse = np.random.default_rng(keys).integers(0, 128, (3, 8, 8), dtype=np.uint8)
    return np.repeat(np.repeat(coarse, 8, axis=1), 8, axis=2)


class Blocks:
    """Random blocks, brighter for one caption; every third picture of a caption is the one before it."""

    about = {"model": "RUN", "step": 3, "weights": "0123", "code": "4567", "recipe": {"steps": 2}}

    def sample(self, jobs):
        made = [noise(job.seed - (job.seed % 3 == 2)) + 100 * (job.prompt == "bright") for job in jobs]
        return torch.from_numpy(np.stack(made).astype(np.uint8)), 2.0


class Bright:
    """Checks the brightness; one caption is never right."""

    def __call__(self, images, captions):
        bright = (images.float().mean((1, 2, 3)) > 110).numpy()
        expected = np.array([caption == "bright" for caption in captions])
        return {"light": bright == expected, "other": np.array([caption != "never right" for caption in captions])}


def make(folder, filter=None, captions=CAPTIONS[:2], count=21, batch=4, layout="imagefolder", tries=4, delivery=None):
    output = Output(Quotas(captions, count, tries, 0, shard_size=11), WRITERS[layout](folder), {})
    output.begin([[batch]], False)
    filter = filter or Filter(Bright(), Duplicates(Thumbnail(), {}, 3))

    def card(output):
        text = card_of(output, Blocks.about, filter, {"path": "DIR"}, "CC0 (7)", folder.with_name("a_rejects"))
        (folder / "README.md").write_text(f"{text}{unfilled(output)}")

    with tqdm(total=count, disable=True) as bar:
        Synthesis(output, lambda number: Blocks(), filter, folder.with_name(f"{folder.name}_rejects"), delivery).run(
            bar, card
        )
    return list(rows_in(folder / "generated.jsonl"))


def contents(folder):
    return {str(file.relative_to(folder.parent)).replace(folder.name, "", 1): file.read_bytes()
            for top in (folder, folder.with_name(f"{folder.name}_rejects")) for file in top.rglob("*") if file.is_file()}  # fmt: skip


@pytest.mark.parametrize(("captions", "count", "size"), [(3, 10, 4), (7, 7, 3), (100, 1000, 64), (4, 3 * 4, 1)])
def test_captions_share_the_pictures_and_every_seed_is_used_once(captions, count, size):
    quotas = Quotas([f"{n}" for n in range(captions)], count, 3, 5, size)
    shares = [quotas.quota(label) for label in range(captions)]
    assert sum(shares) == count
    assert max(shares) - min(shares) <= 1
    assert [label for shard in range(quotas.shards) for label in quotas.labels(shard)] == list(range(captions))
    assert sum(len(quotas.rows(shard)) for shard in range(quotas.shards)) == count
    seeds = [quotas.job(label, number).seed for label in range(captions) for number in range(3 * shares[label])]
    assert len(set(seeds)) == len(seeds)


def test_the_data_set_is_balanced_and_rejects_are_kept_with_reasons(tmp_path):
    rows = make(tmp_path / "a")
    kept = [row for row in rows if "file" in row]
    assert Counter(row["prompt"] for row in kept) == {"bright": 11, "dark": 10}
    assert {(row["prompt"], row["label"]) for row in kept} == {("bright", 0), ("dark", 1)}
    rejected = [row for row in rows if "rejected" in row]
    assert len(kept) + len(rejected) == len(rows)
    assert rejected
    for row in rejected:
        assert row["rejected"] == "duplicate: 0 grey levels from an earlier picture of the caption"
        assert row["seed"] % 3 == 2, "the pictures that repeat the one before"
        with Image.open(tmp_path / "a_rejects" / f"{row['name']}.png") as picture:
            assert picture.text["rejected"] == row["rejected"]
    assert not any(
        row["seed"] % 3 == 2 and {"seed": row["seed"] - 1, "label": row["label"]}.items() <= other.items()
        for row in kept
        for other in kept
    )
    metadata = [json.loads(line) for line in (tmp_path / "a/train/metadata.jsonl").read_text().splitlines()]
    assert [(row["text"], row["label"]) for row in metadata] == [(row["prompt"], row["label"]) for row in kept]
    card = (tmp_path / "a/README.md").read_text()
    assert f"{len(rejected)} of the\n  {len(rows)} that were made are rejected" in card
    assert "| 0 | bright | 11 |" in card
    assert f"| duplicate | {len(rejected)} |" in card
    assert "Licences: CC0 (7)" in card
    assert "weights 0123" in card


def test_a_caption_that_is_never_right_ends_and_is_named(tmp_path):
    rows = make(tmp_path / "a", captions=CAPTIONS, count=6, tries=3)
    assert Counter(row["prompt"] for row in rows if "file" in row) == {"bright": 2, "dark": 2}
    wrong = [row["rejected"] for row in rows if row["prompt"] == "never right"]
    assert wrong == ["checker: wrong other"] * 6
    assert (tmp_path / "a/README.md").read_text().endswith("['never right']")


class Strict(Delivery):
    def check_prompts(self, jobs):
        return [[Decision(job.prompt != "dark", "blocked")] for job in jobs]


def test_what_the_delivery_refuses_is_no_picture(tmp_path):
    rows = make(tmp_path / "a", count=6, tries=2, delivery=Strict())
    assert Counter(row["prompt"] for row in rows if "file" in row) == {"bright": 3}
    assert [row["rejected"] for row in rows if row["prompt"] == "dark"] == ["refused: blocked"] * 6
    assert not list((tmp_path / "a_rejects").glob("class_1*"))


class Watching(Delivery):
    """Notes which files are there when their rows are logged."""

    def __init__(self, folder):
        self.folder, self.logged, self.there = folder, 0, []

    def log(self, row, decisions, png, facts):
        self.logged += 1
        files = (self.folder / row.get("file", "none"), self.folder.with_name("a_rejects") / f"{row['name']}.png")
        self.there += [file for file in files if file.exists()]


def test_no_file_is_written_before_its_log_entry(tmp_path):
    watching = Watching(tmp_path / "a")
    rows = make(tmp_path / "a", delivery=watching)
    assert watching.logged == len(rows)
    assert watching.there == []
    assert list((tmp_path / "a_rejects").glob("*.png"))


def test_copies_of_training_pictures_are_rejected(tmp_path):
    trained = np.stack([noise(0), noise(4)])
    filter = Filter(None, Duplicates(Thumbnail(), by_caption(["dark", "dark"], Thumbnail().describe(trained)), 3))
    rows = make(tmp_path / "a", filter, captions=["dark"], count=5)
    reasons = {row["seed"]: row.get("rejected", "") for row in rows}
    assert reasons[0] == reasons[4] == "copy: 0 grey levels from a training picture"
    assert not reasons[1]


@pytest.mark.parametrize("layout", ["imagefolder", "webdataset", "parquet"])
def test_a_killed_synthesis_goes_on(tmp_path, layout):
    make(tmp_path / "whole", layout=layout)

    def cut():
        left = [16]

        class Killing(Bright):
            def __call__(self, images, captions):
                left[0] -= len(captions)
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().__call__(images, captions)

        make(tmp_path / "cut", Filter(Killing(), Duplicates(Thumbnail(), {}, 3)), layout=layout)

    process = multiprocessing.get_context("fork").Process(target=cut)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "cut/unfinished/00000.jsonl").is_file()
    make(tmp_path / "cut", layout=layout)
    whole, made = contents(tmp_path / "whole"), contents(tmp_path / "cut")
    for files in (whole, made):
        files["/README.md"] = files["/README.md"].replace(b"whole", b"cut")
    assert made == whole


@pytest.mark.parametrize("name", MEASURES)
def test_the_threshold_is_that_of_real_pictures(name):
    """At most 1 % of them count as duplicates of others, and of new pictures of this kind hardly more."""
    measure = MEASURES[name]()
    real = measure.describe(np.stack([noise(1, row) for row in range(300)]))
    found = Duplicates(measure, by_caption(["a"] * 300, real))
    nearest = [np.delete(measure.distances(one, real), row).min() for row, one in enumerate(real)]
    assert (np.array(nearest) <= found.threshold).mean() <= 0.01
    assert found.threshold == measure.most or (np.array(nearest) <= found.threshold + 1).mean() > 0.01
    fresh = measure.describe(np.stack([noise(2, row) for row in range(50)]))
    assert sum(bool(found.reason(one, "a", [])) for one in fresh) <= 2


def test_copies_with_a_little_noise_are_found():
    digits, rng = Digits("train"), np.random.default_rng(0)
    images = digits.images(np.arange(1500))
    found = Duplicates(Thumbnail(), by_caption(digits.captions, Thumbnail().describe(images)))
    noisy = np.clip(images + rng.normal(0, 4, images.shape).round(), 0, 255).astype(np.uint8)
    reasons = [
        found.reason(one, caption, [])
        for one, caption in zip(Thumbnail().describe(noisy), digits.captions, strict=True)
    ]
    assert all(reason.startswith("copy: ") for reason in reasons)
    held_out = Digits("val")
    fresh = Thumbnail().describe(held_out.images(np.arange(len(held_out))))
    assert (
        sum(bool(found.reason(one, caption, [])) for one, caption in zip(fresh, held_out.captions, strict=True))
        < 0.03 * 297
    )


@pytest.mark.parametrize("name", MEASURES)
def test_pictures_that_a_measure_cannot_tell_apart_are_no_duplicates(name):
    flat = MEASURES[name]().describe(np.full((50, 3, 16, 16), 7, np.uint8))
    found = Duplicates(MEASURES[name](), by_caption(["a"] * 50, flat))
    assert not found.reason(flat[0], "a", [flat[1]])


def test_captions_that_do_not_repeat_are_no_classes():
    pictures = Pdq().describe(np.stack([noise(row) for row in range(6)]))
    found = Duplicates(Pdq(), by_caption(list("abcdef"), pictures), 5)
    assert found.reason(pictures[3], "z", []) == "copy: 0 bits from a training picture"
    assert not Duplicates(Pdq(), by_caption(list("aabbcc"), pictures), 5).reason(pictures[3], "a", [])


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pdqhash", None)
    with pytest.raises(ValueError, match=r"pip install 'dit\[serve\]'; duplicates=thumbnail needs none"):
        Pdq().describe(np.zeros((1, 3, 8, 8), np.uint8))
