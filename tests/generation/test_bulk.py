"""Many pictures: written as they are made, continued after a kill, and equal for any number of processes."""

import hashlib
import io
import json
import multiprocessing
import os
import resource
import signal
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tqdm import tqdm

from dit.cost import Meter, Price
from dit.data.folder import Folder
from dit.data.parquet import Parquet
from dit.data.webdataset import WebDataset
from dit.generation.bulk import Bulk
from dit.generation.delivery import Delivery
from dit.generation.encoding import Encoding
from dit.generation.output import Output, rows_in
from dit.generation.policy import Decision
from dit.generation.sheet import write_sheets
from dit.generation.work import Work
from dit.generation.writers import WRITERS

PROMPTS = ["a red star", "ein grüner Stern", 'a, "b"']


class Stripes:
    """A network that takes no time: the picture is a function of prompt and seed."""

    about = {"model": "RUN", "step": 3, "weights": "0123", "code": "4567", "recipe": {"steps": 2}}

    def sample(self, jobs):
        made = [np.random.default_rng([job.seed, len(job.prompt)]).integers(0, 256, (3, 8, 12)) for job in jobs]
        return torch.from_numpy(np.stack(made).astype(np.uint8)), 2.0


def output_of(folder, layout, seeds=range(7), fields=(), shard_size=6, encoding=None):
    fields = {"layout": layout, "seeds": list(seeds), **dict(fields)}
    return Output(Work(PROMPTS, seeds, shard_size=shard_size), WRITERS[layout](folder, encoding or Encoding()), fields)


def make(folder, layout="folder", delivery=None, batch=4, replace=False, **settings):
    output = output_of(folder, layout, **settings)
    output.begin([[batch]], False, replace)
    with tqdm(total=len(output.work), disable=True) as bar:
        Bulk(output, lambda number: Stripes(), delivery or Delivery()).run(bar, lambda output: write_sheets(output, 9))
    return folder


def contents(folder):
    """Every file below the folder and its sheet, by name."""
    files = [*folder.rglob("*"), folder.with_name(f"{folder.name}_grid.png")]
    return {
        str(file.relative_to(folder.parent)).replace(folder.name, "", 1): file.read_bytes()
        for file in files
        if file.is_file()
    }


class Killing(Delivery):
    """Kills the process after a number of pictures."""

    def __init__(self, count):
        self.left = count

    def sign(self, row, png):
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return png


def killed(folder, layout, count):
    process = multiprocessing.get_context("fork").Process(target=make, args=(folder, layout, Killing(count)))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize("count", [0, 3, 13])
def test_the_same_call_goes_on_after_a_kill(tmp_path, layout, count):
    whole = contents(make(tmp_path / "whole", layout))
    killed(tmp_path / "cut", layout, count)
    assert (tmp_path / "cut/unfinished/plan.json").is_file()
    assert len(list((tmp_path / "cut/unfinished").glob("*.jsonl"))) == count // 6, "finished shards are kept"
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stripes, "sample", lambda self, jobs, own=Stripes.sample: made.extend(jobs) or own(self, jobs))
        cut = contents(make(tmp_path / "cut", layout))
    assert [job.index for job in made] == list(range(count // 6 * 6, 21)), "and not made again"
    assert cut == whole
    assert not any("unfinished" in name or name.endswith((".lock", ".tmp")) for name in whole)


@pytest.mark.parametrize("layout", WRITERS)
def test_two_processes_make_the_same_files_as_one(tmp_path, layout):
    whole = contents(make(tmp_path / "whole", layout, shard_size=2))
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=make, args=(tmp_path / "two", layout), kwargs={"shard_size": 2}) for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert contents(tmp_path / "two") == whole


def test_a_finished_folder_is_passed_over(tmp_path, monkeypatch):
    before = contents(make(tmp_path / "a"))
    monkeypatch.setattr(Stripes, "sample", None)
    assert contents(make(tmp_path / "a")) == before


def test_the_table_says_what_made_a_picture(tmp_path):
    rows = list(rows_in(make(tmp_path / "a") / "generated.jsonl"))
    assert [(row["prompt"], row["seed"]) for row in rows] == [(prompt, seed) for prompt in PROMPTS for seed in range(7)]
    for row in rows:
        assert Stripes.about.items() <= row.items()
        with Image.open(tmp_path / "a" / row["file"]) as picture:
            assert hashlib.sha256(picture.tobytes()).hexdigest() == row["pixels_sha256"]
            assert picture.size == (row["width"], row["height"]) == (12, 8)
            text = picture.text
        assert (text["prompt"], text["seed"], text["weights"]) == (row["prompt"], str(row["seed"]), "0123")
        assert json.loads(text["recipe"]) == {"steps": 2}
        assert text["pixels_sha256"] == row["pixels_sha256"]
    metadata = [json.loads(line) for line in (tmp_path / "a/metadata.jsonl").read_text().splitlines()]
    assert metadata == [{"file_name": row["file"], "text": row["prompt"]} for row in rows]
    manifest = json.loads((tmp_path / "a/manifest.json").read_text())
    assert (manifest["pictures"], manifest["refused"]) == (21, 0)
    assert (
        manifest["files"]["generated.jsonl"]
        == hashlib.sha256((tmp_path / "a/generated.jsonl").read_bytes()).hexdigest()
    )


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_other_formats_have_the_pixels_of_their_row_and_can_be_trained_on(tmp_path, layout, kind):
    output = output_of(tmp_path / "a", layout, encoding=Encoding(kind, 90))
    make(tmp_path / "a", layout, encoding=Encoding(kind, 90))
    for row in rows_in(tmp_path / "a" / "generated.jsonl"):
        with Image.open(io.BytesIO(output.writer.read(row))) as picture:
            assert picture.format == kind.upper()
            assert hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest() == row["pixels_sha256"]
            assert json.loads(picture.getexif()[0x010E]) == row
    splits = [SOURCES[layout](str(tmp_path / "a"), 8, split, val_share=0.2) for split in ("train", "val")]
    assert sum(map(len, splits)) == 21
    make(tmp_path / "a", layout, encoding=Encoding(kind, 90), replace=True, fields={"other": 1})


SOURCES = {"folder": Folder, "imagefolder": Folder, "webdataset": WebDataset, "parquet": Parquet}


@pytest.mark.parametrize("layout", WRITERS)
def test_training_reads_every_layout(tmp_path, layout):
    make(tmp_path / "a", layout)
    splits = [SOURCES[layout](str(tmp_path / "a"), 8, split, val_share=0.2) for split in ("train", "val")]
    assert sum(map(len, splits)) == 21
    assert {caption for split in splits for caption in split.captions} == set(PROMPTS)


@pytest.mark.parametrize(("layout", "builder"), [("imagefolder", "imagefolder"), ("parquet", "parquet")])
def test_hugging_face_reads_them(tmp_path, layout, builder):
    datasets = pytest.importorskip("datasets")
    make(tmp_path / "a", layout)
    where = (
        {"data_dir": str(tmp_path / "a")} if layout == "imagefolder" else {"data_files": str(tmp_path / "a/*.parquet")}
    )
    found = datasets.load_dataset(builder, split="train", cache_dir=str(tmp_path / "cache"), **where)
    assert len(found) == 21
    assert found[0]["image"].size == (12, 8)
    assert found[0]["text" if layout == "imagefolder" else "prompt"] in PROMPTS
    assert set(found["seed"]) == set(range(7))


def test_the_pixels_of_every_layout_are_the_same(tmp_path):
    make(tmp_path / "a")
    tar, table = make(tmp_path / "b", "webdataset") / "00002.tar", make(tmp_path / "c", "parquet") / "00002.parquet"
    single = (tmp_path / "a/prompt_2_seed_3.png").read_bytes()
    with tarfile.open(tar) as opened:
        packed = Image.open(io.BytesIO(opened.extractfile("prompt_2_seed_3.png").read()))
        assert opened.extractfile("prompt_2_seed_3.txt").read().decode() == PROMPTS[2]
    [stored] = [row for row in pq.read_table(table).to_pylist() if row["name"] == "prompt_2_seed_3"]
    stored = Image.open(io.BytesIO(stored["image"]["bytes"]))
    assert packed.tobytes() == stored.tobytes() == Image.open(io.BytesIO(single)).tobytes()


class Strict(Delivery):
    """Refuses a prompt and pictures of one seed, and darkens the others."""

    def __init__(self):
        self.logged, self.facts = [], []

    def check_prompts(self, jobs):
        return [[Decision(job.prompt != PROMPTS[1], "blocked")] for job in jobs]

    def check_pictures(self, jobs, pixels):
        assert len(pixels) == len(jobs)
        return [[Decision(job.seed != 3, "odd")] for job in jobs]

    def mark(self, jobs, pixels):
        return pixels // 2

    def sign(self, row, png):
        return png + b"signed"

    def log(self, row, decisions, png, facts):
        self.logged.append(row)
        self.facts.append(facts)


@pytest.mark.parametrize("layout", WRITERS)
def test_what_is_refused_is_not_written_and_what_is_delivered_is_marked(tmp_path, layout):
    delivery = Strict()
    rows = list(rows_in(make(tmp_path / "a", layout, delivery) / "generated.jsonl"))
    assert rows == delivery.logged
    reasons = ["blocked" if row["prompt"] == PROMPTS[1] else "odd" if row["seed"] == 3 else None for row in rows]
    assert [row.get("refused") for row in rows] == reasons
    assert ["file" in row for row in rows] == [reason is None for reason in reasons]
    writer = WRITERS[layout](tmp_path / "a")
    for index in (0, 4, 20):
        data, job = writer.read(rows[index]), Work(PROMPTS, range(7))[index]
        assert data.endswith(b"signed")
        expected = (Stripes().sample([job])[0][0] // 2).permute(1, 2, 0).numpy()
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), expected)
    manifest = json.loads((tmp_path / "a/manifest.json").read_text())
    assert (manifest["pictures"], manifest["refused"]) == (12, 9)


@pytest.mark.parametrize("layout", WRITERS)
def test_every_file_of_a_layout_has_one_of_its_names(tmp_path, layout):
    """So that replace=true removes all of them, and nothing else."""
    folder = make(tmp_path / "a", layout)
    output = output_of(folder, layout)
    (folder / "mine.txt").write_text("mine")
    output.clear(output.layout)
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_another_call_does_not_touch_the_folder(tmp_path):
    before = contents(make(tmp_path / "a", fields={"weights": "1"}))
    with pytest.raises(
        ValueError, match=r"another call, which differs in weights; choose another out, or replace=true"
    ):
        make(tmp_path / "a", fields={"weights": "2"})
    assert contents(tmp_path / "a") == before
    killed(tmp_path / "b", "folder", 8)
    before = contents(tmp_path / "b")
    with pytest.raises(ValueError, match="differs in recipe"):
        make(tmp_path / "b", fields={"recipe": 1})
    assert contents(tmp_path / "b") == before


@pytest.mark.parametrize("layout", WRITERS)
def test_replacing_removes_the_pictures_of_another_call_and_nothing_else(tmp_path, layout):
    make(tmp_path / "a", layout, seeds=range(10))
    killed(tmp_path / "b", layout, 8)
    for folder in (tmp_path / "a", tmp_path / "b"):
        (folder / "mine.png").write_bytes(b"mine")
        (folder / "train/mine").mkdir(parents=True)
        (folder / "train/mine/00000.tar").write_bytes(b"mine")
        made = contents(make(folder, layout, seeds=range(2), replace=True))
        assert made.pop("/mine.png") == made.pop("/train/mine/00000.tar") == b"mine"
        assert made == contents(make(tmp_path / "new", layout, seeds=range(2)))


@pytest.mark.parametrize(("layout", "name"), [("folder", "metadata.jsonl"), ("folder", "prompt_0_seed_0.png"), ("webdataset", "00000.tar"),
                                              ("parquet", "00003.parquet"), ("imagefolder", "train/00000/a.png"), ("imagefolder", "train/metadata.jsonl"), ("folder", "generated.jsonl")])  # fmt: skip
def test_files_of_other_programs_are_not_overwritten(tmp_path, layout, name):
    (tmp_path / "a" / name).parent.mkdir(parents=True)
    (tmp_path / "a" / name).write_bytes(b"mine")
    for replace in (False, True):
        with pytest.raises(
            ValueError, match=r"a has .*, which no unfinished call of this version wrote; choose another out"
        ):
            make(tmp_path / "a", layout, replace=replace)
    assert [file.read_bytes() for file in (tmp_path / "a").rglob("*") if file.is_file()] == [b"mine"]


def test_a_missing_picture_of_a_finished_folder_is_named(tmp_path):
    before = contents(make(tmp_path / "a"))
    (tmp_path / "a/prompt_1_seed_2.png").unlink()
    with pytest.raises(ValueError, match=r"1 of its files are missing, first prompt_1_seed_2.png"):
        make(tmp_path / "a")
    assert contents(make(tmp_path / "a", replace=True)) == before


def test_every_picture_has_its_cost_and_equal_shares_of_a_batch_sum_up(tmp_path):
    """In the table of costs and in the log; what is refused before sampling costs nothing."""
    delivery, output = Strict(), output_of(tmp_path / "a", "folder")
    output.begin([[4]], False)
    clock = Meter(torch.device("cpu"), Price(3600.0, "EUR"), processes=2)
    bulk = Bulk(output, lambda number: Stripes(), delivery, clock)
    with tqdm(total=21, disable=True) as bar:
        bulk.run(bar)
    rows = [json.loads(line) for line in (tmp_path / "a_costs.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(21))
    assert [facts["cost"] for facts in delivery.facts] == [
        {name: row[name] for name in row if name not in ("index", "name")} for row in rows
    ]
    for row in rows:
        blocked = PROMPTS[1] == Work(PROMPTS, range(7))[row["index"]].prompt
        assert row["network_calls"] == (0 if blocked else 2)
        assert (row["seconds"] > 0, row["currency"]) == (not blocked, "EUR")
        assert row["price"] == pytest.approx(row["seconds"] / 2, abs=1e-6), "two processes share the machine"
    assert sum(row["seconds"] for row in rows) == pytest.approx(bulk.cost.seconds, abs=3e-5)
    assert (bulk.cost.calls, bulk.costs) == (28, {})


class Filling(Delivery):
    def sign(self, row, png):
        if row["index"] == 13:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        return png


def fill(folder, file):
    try:
        make(folder, "parquet", Filling())
    except ValueError as error:
        file.write_text(str(error))


class Broken(Delivery):
    def sign(self, row, png):
        raise ValueError("no certificate")


@pytest.mark.parametrize("layout", WRITERS)
def test_an_error_before_the_first_picture_leaves_nothing(tmp_path, layout):
    (tmp_path / "b").mkdir()
    (tmp_path / "b/mine").write_bytes(b"mine")
    for folder in (tmp_path / "a", tmp_path / "b"):
        with pytest.raises(ValueError, match="no certificate"):
            make(folder, layout, Broken())
    assert [file.name for file in tmp_path.rglob("*")] == ["b", "mine"]


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    """A limit on the size of files stands for the disk: the last shards do not fit."""
    whole = contents(make(tmp_path / "whole", "parquet"))
    process = multiprocessing.get_context("fork").Process(target=fill, args=(tmp_path / "full", tmp_path / "error"))
    process.start()
    process.join(60)
    assert (tmp_path / "error").read_text().startswith(f"cannot write {tmp_path / 'full' / '00002.parquet'}: ")
    assert sorted(file.name for file in (tmp_path / "full").glob("*.parquet")) == ["00000.parquet", "00001.parquet"]
    assert contents(make(tmp_path / "full", "parquet")) == whole


def test_the_contact_sheet_shows_some_of_many(tmp_path):
    make(tmp_path / "few", seeds=range(3))
    make(tmp_path / "many")
    few, many = (Image.open(tmp_path / f"{name}_grid.png").size for name in ("few", "many"))
    assert few == many, "nine pictures in rows of six"
    assert few[0] == 6 * (132 + 6) + 6
