"""Metadata, splits, broken files and filters of picture sources, and what is kept of them between runs."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dit.data import folder as folder_module
from dit.data.captions import captions_in, chosen_caption
from dit.data.folder import Folder
from dit.data.rows import Row
from dit.data.source import selected
from dit.data.splits import split_of_file
from dit.picture_files import Rules, resized


def paint(path, seed=0, size=(24, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)


@pytest.fixture(autouse=True)
def fresh_selection():
    selected.cache_clear()


def written(root, rows, suffix="jsonl"):
    for i, row in enumerate(rows):
        paint(root / row["file_name"], i)
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), root / "metadata.parquet")
    else:
        (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def folder(root, split="train", size=8, **options):
    return Folder(str(root), size, split, **{"val_share": 0.3} | options)


def both(root, **options):
    found = []
    for split in ("train", "val"):
        try:
            found += folder(root, split, **{"val_share": 0.5} | options).rows
        except ValueError as error:
            if "split empty" not in str(error):
                raise
    return found


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_metadata_of_both_forms_gives_captions_and_provenance(tmp_path, suffix):
    rows = [
        {"file_name": f"{i}.png", "text": f"number {i}", "license": "cc0", "url": f"https://a.org/{i}"}
        for i in range(20)
    ]
    source = folder(written(tmp_path, rows, suffix))
    table = source.provenance.to_pylist()
    assert len(table) == len(source) < 20
    for caption, row in zip(source.captions, table, strict=True):
        number = caption.split()[1]
        assert (row["id"], row["url"], row["licence"]) == (f"{number}.png", f"https://a.org/{number}", "cc0")
        assert (row["width"], row["height"], row["crop"]) == (24, 16, "4,0,16,16")
        assert row["caption_origin"] == f"metadata.{suffix}"


def test_a_parquet_file_that_is_none_or_has_no_file_name_is_named(tmp_path):
    paint(tmp_path / "a.png")
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(ValueError, match=r"metadata\.parquet cannot be read as parquet"):
        folder(tmp_path)
    pq.write_table(pa.table({"name": ["a.png"]}), tmp_path / "metadata.parquet")
    with pytest.raises(ValueError, match="must have the columns file_name and text; it has name"):
        folder(tmp_path)


class TestSplits:
    @pytest.mark.parametrize("names", [("train", "validation"), ("training", "dev"), ("Train", "val")], ids=str)
    def test_split_folders_are_the_splits(self, tmp_path, names):
        for i in range(12):
            paint(tmp_path / names[i % 3 == 0] / "cat" / f"{i}.png", i)
        train, val = (folder(tmp_path, split, template="a *") for split in ("train", "val"))
        assert sorted(int(file.stem) % 3 == 0 for file in train.files) == [False] * 8
        assert [int(file.stem) % 3 for file in val.files] == [0] * 4
        assert set(train.captions) == {"a cat"}

    def test_the_name_of_a_split_is_no_class_and_what_is_in_no_split_is_named(self, tmp_path, capsys):
        for i in range(6):
            paint(tmp_path / ("train" if i % 2 else "test") / "cat" / f"{i}.png", i)
        paint(tmp_path / "train" / "bare.png", 7)
        paint(tmp_path / "other" / "a.png", 8)
        assert len(folder(tmp_path, "test", template="a *")) == 3
        warning = capsys.readouterr().err
        assert "1 pictures" in warning
        assert "have no caption and are left out: train/bare.png" in warning
        assert "are in none of its splits and are left out: other/a.png" in warning
        assert "has train and test and no validation" in warning

    def test_without_training_images_the_folders_are_classes(self, tmp_path):
        for i in range(30):
            paint(tmp_path / ("test" if i % 2 else "val") / f"{i}.png", i)
        assert {row.captions[0][0] for row in both(tmp_path, template="a *")} == {"a test", "a val"}

    def test_copies_in_both_splits_are_named(self, tmp_path, capsys):
        for split in ("train", "val"):
            for i in range(3):
                paint(tmp_path / split / "a" / f"{i}.png", i + (10 if split == "val" and i else 0))
        folder(tmp_path, template="*")
        assert "1 pictures" in (warning := capsys.readouterr().err)
        assert "byte for byte, in its training split: val/a/0.png" in warning

    @pytest.mark.parametrize(
        ("name", "split"),
        [("train-00000-of-00010.parquet", "train"), ("data_validation_3.tar", "val"), ("trainer.tar", None),
         ("test.tar", "test"), ("train_test.tar", None), ("000012.tar", None)],
    )  # fmt: skip
    def test_splits_of_file_names(self, name, split):
        assert split_of_file(name) == split


class TestKnownFiles:
    def test_nothing_is_read_again_but_what_changed(self, tmp_path, monkeypatch):
        root = tmp_path / "pictures"
        for i in range(20):
            paint(root / "a" / f"{i}.png", i)
        (root / "a" / "torn.png").write_bytes(b"no picture")
        options = {"template": "*", "cache_dir": str(tmp_path / "cache")}
        before = both(root, **options)
        read = []
        inspect = folder_module.inspected
        monkeypatch.setattr(folder_module, "inspected", lambda row, data: read.append(row.name) or inspect(row, data))
        selected.cache_clear()
        assert both(root, **options) == before
        assert read == []
        paint(root / "a" / "3.png", 33)
        os.utime(root / "a" / "4.png", ns=(1, 1))
        (root / "a" / "5.png").unlink()
        selected.cache_clear()
        assert len(both(root, **options)) == 19
        assert sorted(read) == ["a/3.png", "a/4.png"]

    def test_a_broken_index_is_made_again(self, tmp_path, capsys):
        root, cache = tmp_path / "pictures", tmp_path / "cache"
        for i in range(8):
            paint(root / "a" / f"{i}.png", i)
        before = both(root, template="*", cache_dir=str(cache))
        [index] = (cache / "sources").iterdir()
        index.write_bytes(index.read_bytes()[:100])
        selected.cache_clear()
        assert both(root, template="*", cache_dir=str(cache)) == before
        assert f"{index} is broken and is made again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("limit", "ends"), [(None, False), (0, True), (1, True), (2, False), (0.1, True), (0.5, False)]
)
def test_a_limit_on_broken_pictures_ends_the_run_in_one_line(tmp_path, limit, ends):
    for i in range(10):
        paint(tmp_path / "a" / f"{i}.png", i)
    for i in range(2):
        (tmp_path / "a" / f"{i}.png").write_bytes((tmp_path / "a" / f"{i}.png").read_bytes()[:100])
    if ends:
        with pytest.raises(ValueError, match=r"2 of 10 pictures cannot be read, more than data.max_broken=.* a/0\.png"):
            folder(tmp_path, template="*", max_broken=limit)
    else:
        assert len(both(tmp_path, template="*", max_broken=limit)) == 8


class TestSeveralCaptions:
    def test_the_heaviest_is_first_and_all_are_kept_with_their_weights(self, tmp_path):
        texts = [["one", "two"], [{"text": "a", "weight": 1}, {"text": "b", "weight": 3}], "alone", ["", "x"]] * 5
        source = folder(written(tmp_path, [{"file_name": f"{i}.png", "text": t} for i, t in enumerate(texts)]))
        expected = [(("one", 1), ("two", 1)), (("b", 3), ("a", 1)), (("alone", 1),), (("x", 1),)]
        for file, caption, choices in zip(source.files, source.captions, source.caption_choices, strict=True):
            assert choices == expected[int(file.stem) % 4]
            assert caption == choices[0][0]

    def test_one_caption_each_has_no_choices(self, tmp_path):
        source = folder(written(tmp_path, [{"file_name": f"{i}.png", "text": ["a"]} for i in range(9)]))
        assert not hasattr(source, "caption_choices")

    @pytest.mark.parametrize(
        "value", [3, [{"text": "a", "weight": 0}], [{"text": "a", "weight": "2"}], [["a"]]], ids=str
    )
    def test_other_values_are_refused_with_the_row(self, value):
        with pytest.raises(ValueError, match="here line 3: a caption is a text, or a list"):
            captions_in(value, "here line 3")

    def test_the_choice_is_a_function_of_its_keys_with_the_given_shares(self):
        chosen = [chosen_caption((3.0, 1.0), 5, epoch, sample) for epoch in range(20) for sample in range(200)]
        assert chosen == [chosen_caption((3.0, 1.0), 5, epoch, sample) for epoch in range(20) for sample in range(200)]
        assert np.mean(chosen) == pytest.approx(0.25, abs=0.03)
        by_epoch = np.array(chosen).reshape(20, 200)
        assert len({tuple(row) for row in by_epoch}) == 20
        assert chosen != [chosen_caption((3.0, 1.0), 6, epoch, sample) for epoch in range(20) for sample in range(200)]


class TestFilter:
    ROWS = [
        {"file_name": f"{i}.png", "text": "a", "licence": ["CC0", "cc-by", ""][i % 3], "id": f"n{i}",
         "url": f"https://{['a.org', 'img.b.com', 'c.net'][i % 3]}/{i}.png"}
        for i in range(60)
    ]  # fmt: skip

    def ids(self, tmp_path, **options):
        return {int(row.metadata["id"][1:]) for row in both(tmp_path, filter=options)}

    def test_licences_are_compared_without_case_and_what_is_left_out_is_counted(self, tmp_path, capsys):
        written(tmp_path, self.ROWS)
        assert self.ids(tmp_path, licence=["cc0"]) == set(range(0, 60, 3))
        printed = capsys.readouterr().err
        assert "20 of 60 images have no licence" in printed
        assert "leaves out 40 images: 20 of cc-by, 20 of no licence" in printed
        with pytest.raises(ValueError, match=r"allows none of its licences: CC0 \(20\)"):
            self.ids(tmp_path, licence=["mit"])

    def test_a_licence_can_be_required(self, tmp_path):
        written(tmp_path, self.ROWS)
        with pytest.raises(ValueError, match=r"20 of 60 images have no licence .*data.filter.require_licence=false"):
            self.ids(tmp_path, require_licence=True)

    def test_ids_urls_hashes_and_domains_are_excluded(self, tmp_path, capsys):
        written(tmp_path, self.ROWS)
        digest = next(row.picture.digest.hex() for row in both(tmp_path) if row.metadata["id"] == "n6")
        listed = tmp_path / "exclude.txt"
        listed.write_text(f"# asked to be left out\nb.com\n\nhttps://a.org/0.png\nn3\n{digest}\nhttps://a.org/none\n")
        assert self.ids(tmp_path, exclude=str(listed)) == set(range(60)) - set(range(1, 60, 3)) - {0, 3, 6}
        assert "excludes 23 of 60 images" in capsys.readouterr().err
        listed.write_text("# nothing\n")
        selected.cache_clear()
        with pytest.raises(ValueError, match="lists no id, URL or domain"):
            self.ids(tmp_path, exclude=str(listed))

    def test_an_unknown_key_is_named(self, tmp_path):
        with pytest.raises(ValueError, match=r"data\.filter\.license: there are licence"):
            self.ids(tmp_path, license=["cc0"])


class TestRules:
    def test_each_rule_gives_another_fingerprint_and_the_default_that_of_no_rule(self, tmp_path):
        written(tmp_path, [{"file_name": f"{i}.png", "text": "a"} for i in range(9)])
        plain = folder(tmp_path).fingerprint
        rules = [{"resize": "adm", "crop": "centre"}, {"resize": "lanczos"}, {"resize": "bicubic"}, {"crop": "none"}]
        found = [folder(tmp_path, rules=rule).fingerprint for rule in rules]
        assert found[0] == plain
        assert len(set(found)) == 4

    @pytest.mark.parametrize("resize", ["adm", "bicubic", "bilinear", "lanczos"])
    @pytest.mark.parametrize("crop", ["centre", "none"])
    @pytest.mark.parametrize("size", [20, (30, 20), (12, 40)], ids=str)
    def test_the_recorded_box_is_the_part_that_is_kept(self, resize, crop, size):
        """A picture whose kept part is white and the rest black becomes white, up to its edges."""
        rules, picture = Rules(resize, crop), np.zeros((90, 160, 3), np.uint8)
        left, top, width, height = rules.box((160, 90), size)
        picture[top : top + height, left : left + width] = 255
        small = np.asarray(resized(Image.fromarray(picture), size, rules))
        assert small.shape[:2] == ((size, size) if isinstance(size, int) else size[::-1])
        assert small[1:-1, 1:-1].min() > 200
        if crop == "none":
            assert (left, top, width, height) == (0, 0, 160, 90)

    @pytest.mark.parametrize("rule", [{"resize": "nearest"}, {"crop": "random"}], ids=str)
    def test_unknown_rules_are_refused(self, rule):
        with pytest.raises(ValueError, match=r"data\.(resize|crop)=(nearest|random) is n"):
            Rules(**rule)


def test_images_are_read_at_another_size_on_demand(tmp_path):
    source = folder(written(tmp_path, [{"file_name": f"{i}.png", "text": "a"} for i in range(9)]))
    assert source.images(np.arange(3)).shape == (3, 3, 8, 8)
    assert source.images(np.arange(3), (12, 4)).shape == (3, 3, 4, 12)
    assert np.array_equal(source.images(np.array([2, 0]))[1], source.images(np.array([0]))[0])


def test_a_file_that_vanishes_after_the_start_is_named(tmp_path):
    source = folder(written(tmp_path, [{"file_name": f"{i}.png", "text": "a"} for i in range(9)]))
    source.files[0].unlink()
    with pytest.raises(ValueError, match=f"cannot read the picture {source.files[0]}: No such file"):
        source.images(np.array([0]))


def test_rows_without_a_picture_have_no_place():
    assert Row("a").place == ()
