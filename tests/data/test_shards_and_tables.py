"""WebDataset shards, parquet files and data sets of HF: the same pictures as in a folder, and what may be broken."""

import gzip
import json
import sys

import numpy as np
import pytest
from PIL import Image

from dit.data import parquet as parquet_module
from dit.data import remote, webdataset
from dit.data.folder import Folder
from dit.data.huggingface import HuggingFace
from dit.data.parquet import Parquet
from dit.data.source import selected
from dit.data.webdataset import WebDataset
from dit.picture_files import png

from .layouts import write_layouts, write_parquet, write_shards
from .server import Server

OPTIONS = {"val_share": 0.5}


def picture(seed):
    return png(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)))


def samples(count=24, **parts):
    return [{"png": picture(i), "txt": f"number {i}"} | parts for i in range(count)]


@pytest.fixture(autouse=True)
def fresh_selection():
    selected.cache_clear()


def both(make, path, **options):
    """The rows of both splits by caption."""
    found = {}
    for split in ("train", "val"):
        source = make(str(path), 8, split, **OPTIONS | options)
        found |= dict(zip(source.captions, source.rows, strict=True))
    return found


LAYOUTS = {
    "webdataset": (WebDataset, "shards/{00..02}.tar"),
    "parquet": (Parquet, "tables"),
    "huggingface": (HuggingFace, "saved"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_pictures_captions_and_splits_of_the_folder(tmp_path, layout):
    for name in ("cat", "sea_lion"):
        (tmp_path / name).mkdir()
        for i in range(15):
            (tmp_path / name / f"{i}.png").write_bytes(picture(i + 100 * len(name)))
    write_layouts(tmp_path)
    make, path = LAYOUTS[layout]
    for split in ("train", "val"):
        one, other = (
            source(str(tmp_path / where), 16, split, template="a {}", val_share=0.3)
            for source, where in ((Folder, ""), (make, path))
        )
        pairs = [
            sorted(zip(map(bytes, source.images(np.arange(len(source)))), source.captions, strict=True))
            for source in (one, other)
        ]
        assert len(pairs[0]) > 3
        assert pairs[0] == pairs[1]
        assert set(one.provenance["sha256"].to_pylist()) == set(other.provenance["sha256"].to_pylist())


@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
def test_nothing_is_read_again_unless_the_file_changed(tmp_path, layout, monkeypatch):
    make, module = (WebDataset, webdataset) if layout == "webdataset" else (Parquet, parquet_module)

    def write(first):
        made = [{"png": picture(first + i), "txt": f"number {i}"} for i in range(24)]
        write_shards(tmp_path / "data", made)
        write_parquet(tmp_path / "data" / "a.parquet", [{"image": s["png"], "text": s["txt"]} for s in made])

    write(0)
    cache = {"cache_dir": str(tmp_path / "cache")}
    before = both(make, tmp_path / "data", **cache)
    seen, inspect = [], module.inspected
    monkeypatch.setattr(module, "inspected", lambda row, data: seen.append(row.name) or inspect(row, data))
    selected.cache_clear()
    assert both(make, tmp_path / "data", **cache) == before
    assert seen == []
    write(50)
    selected.cache_clear()
    assert both(make, tmp_path / "data", **cache) != before
    assert len(seen) == 24


class TestWebDataset:
    def test_json_gives_captions_with_weights_and_provenance(self, tmp_path):
        described = [
            {
                "png": picture(i),
                "json": json.dumps({"text": [f"number {i}", {"text": "b", "weight": 0.5}], "url": f"u{i}"}),
            }
            for i in range(12)
        ]
        write_shards(tmp_path, described, 2)
        for split in ("train", "val"):
            source = WebDataset(str(tmp_path), 8, split, **OPTIONS)
            for caption, choices, row in zip(
                source.captions, source.caption_choices, source.provenance.to_pylist(), strict=True
            ):
                assert choices == ((caption, 1.0), ("b", 0.5))
                assert row["url"] == f"u{caption.split()[1]}"
                assert row["id"] == f"{int(caption.split()[1]) % 2:02}.tar/{int(caption.split()[1]):04}.png"

    def test_shards_named_by_split_are_the_splits(self, tmp_path):
        write_shards(tmp_path / "one", samples(6))
        write_shards(tmp_path / "two", samples(9)[6:])
        (tmp_path / "one" / "00.tar").rename(tmp_path / "train-00.tar")
        (tmp_path / "two" / "00.tar").rename(tmp_path / "validation-00.tar")
        train, val = (WebDataset(f"{tmp_path}/*.tar", 8, split) for split in ("train", "val"))
        assert train.captions == [f"number {i}" for i in range(6)]
        assert val.captions == [f"number {i}" for i in (6, 7, 8)] or len(val) == 3

    FAULTS = {
        "cut in a member": (lambda data: data[:7000], "unexpected end of data after"),
        "cut between members": (lambda data: data[:6144], "got 0 bytes at 6144"),
        "a flipped bit of a header": (lambda data: data[:6144] + bytes([data[6144] ^ 1]) + data[6145:], "a broken header after"),
        "compressed": (gzip.compress, "it is compressed: unpack it"),
        "no tar": (lambda data: b"text" * 1000, "the shard is no tar or was cut short"),
        "empty": (lambda data: b"", "after 0 samples"),
    }  # fmt: skip

    @pytest.mark.parametrize(("damage", "why"), FAULTS.values(), ids=FAULTS)
    def test_a_damaged_shard_is_counted_and_named(self, tmp_path, capsys, damage, why):
        write_shards(tmp_path, samples(), 2)
        whole = (tmp_path / "01.tar").read_bytes()
        (tmp_path / "01.tar").write_bytes(damage(whole))
        found = both(WebDataset, tmp_path)
        assert {f"number {i}" for i in range(0, 24, 2)} <= found.keys()
        assert len(found) < 24
        warning = capsys.readouterr().err
        assert "1 pictures" in warning
        assert "01.tar (" in warning
        assert why in warning
        with pytest.raises(ValueError, match=r"more than data.max_broken=0 allows: 01\.tar \("):
            both(WebDataset, tmp_path, max_broken=0)

    def test_a_missing_shard_is_counted_and_named(self, tmp_path, capsys):
        write_shards(tmp_path, samples(), 2)
        assert len(both(WebDataset, f"{tmp_path}/{{00..02}}.tar")) == 24
        assert "02.tar (there is no such file)" in capsys.readouterr().err

    def test_bad_samples_are_named_with_the_reason(self, tmp_path, capsys):
        made = samples()
        made[3] = {"png": made[3]["png"][:100], "txt": "torn"}
        made[4] = {"txt": "no image"}
        made[5]["txt"] = "ein Bär".encode("latin-1")
        made[6] |= {"json": "{torn"}
        made[7] |= {"json": json.dumps({"text": 3})}
        write_shards(tmp_path, made)
        assert len(both(WebDataset, tmp_path)) == 19
        warning = capsys.readouterr().err
        for name, why in (("0003.png", "it is"), ("0004", "it has no image"), ("0005.png", "not UTF-8"),
                          ("0006.png", "is not JSON"), ("0007.png", "a caption is a text")):  # fmt: skip
            assert f"00.tar/{name} ({why}" in warning or (f"00.tar/{name}" in warning and why in warning)

    @pytest.mark.parametrize(
        ("path", "fault"),
        [("pipe:cat a.tar", "shell commands are not run"), ("ftp://a/b.tar", "ftp:// is not supported"),
         ("s4://a/b.tar", "Did you mean 's3'"), ("/nowhere/*.tar", "there is no .tar file"),
         ("a{0..", "the braces do not match"), ("/nowhere/a.tar", "there is no such file")],
    )  # fmt: skip
    def test_bad_paths_are_refused_in_one_line(self, path, fault):
        with pytest.raises(ValueError, match=fault):
            WebDataset(path, 8, "train")


@pytest.fixture
def serve(tmp_path):
    servers = []

    def start(ranges=True):
        servers.append(Server(tmp_path, ranges))
        return servers[-1].url

    yield start
    for server in servers:
        server.stop()


class TestRemote:
    def test_shards_at_a_url_are_indexed_once_and_read_by_offset(self, tmp_path, serve, monkeypatch):
        write_shards(tmp_path, samples(), 2)
        here, there = f"{tmp_path}/{{00..01}}.tar", f"{serve()}/{{00..01}}.tar"
        cache = {"cache_dir": str(tmp_path / "cache")}
        local, far = (WebDataset(path, 8, "train", **OPTIONS, **cache) for path in (here, there))
        assert far.captions == local.captions
        index = np.array([3, 0, 1])
        assert np.array_equal(far.images(index), local.images(index))
        selected.cache_clear()
        monkeypatch.setattr(webdataset, "open_file", None)  # the index is known: no shard is read
        assert WebDataset(there, 8, "train", **OPTIONS, **cache).captions == local.captions

    def test_a_server_that_ignores_ranges_is_named(self, tmp_path, serve, monkeypatch):
        monkeypatch.setattr(remote, "WAIT", 0.0)
        write_shards(tmp_path, samples(), 1)
        with pytest.raises(ValueError, match=r"00\.tar.*its server ignores ranges of bytes: copy the file"):
            WebDataset(f"{serve(ranges=False)}/00.tar", 8, "train", max_broken=0, **OPTIONS)

    def test_a_store_that_vanishes_is_named_after_several_attempts(self, tmp_path, serve, monkeypatch):
        monkeypatch.setattr(remote, "WAIT", 0.01)
        write_shards(tmp_path, samples(), 1)
        source = WebDataset(f"{serve()}/00.tar", 8, "train", **OPTIONS)
        calls = []

        def vanished(url):
            calls.append(url)
            raise ConnectionResetError("connection reset by peer")

        monkeypatch.setattr(
            remote, "store_of", lambda url: (type("Store", (), {"cat_file": lambda *a, **k: vanished(url)})(), url)
        )
        with pytest.raises(ValueError, match=r"cannot read http://.*00\.tar: connection reset by peer, 3 times"):
            source.images(np.array([0]))
        assert len(calls) == 3

    def test_an_object_store_of_fsspec_is_read_like_a_folder(self, tmp_path):
        import fsspec

        write_shards(tmp_path, samples(), 2)
        write_parquet(tmp_path / "a.parquet", [{"image": s["png"], "text": s["txt"]} for s in samples()])
        store = fsspec.filesystem("memory")
        for file in tmp_path.iterdir():
            store.pipe_file(f"/bucket/{file.name}", file.read_bytes())
        for make, suffix in ((WebDataset, "tar"), (Parquet, "parquet")):
            here, there = (
                make(f"{where}/*.{suffix}", 8, "train", **OPTIONS) for where in (tmp_path, "memory://bucket")
            )
            assert sorted(there.captions) == sorted(here.captions)
            assert np.array_equal(there.images(np.arange(4)), here.images(np.arange(4)))


class TestTables:
    def test_columns_captions_and_provenance_of_parquet(self, tmp_path):
        rows = [
            {
                "photo": {"bytes": picture(i), "path": None},
                "says": [f"number {i}", "b"],
                "license": "cc0",
                "kind": i % 2,
            }
            for i in range(12)
        ]
        write_parquet(tmp_path / "a.parquet", rows)
        with pytest.raises(
            ValueError, match=r"it has no image column; name one of photo, says.* with data\.fields\.image"
        ):
            both(Parquet, tmp_path)
        with pytest.raises(ValueError, match=r"data\.fields\.image=photos is not a column\. Did you mean 'photo'"):
            both(Parquet, tmp_path, fields={"image": "photos"})
        found = both(Parquet, tmp_path, fields={"image": "photo", "text": "says"})
        assert len(found) == 12
        for caption, row in found.items():
            assert row.captions == ((caption, 1.0), ("b", 1.0))
            assert row.metadata["license"] == "cc0"

    def test_a_damaged_file_and_a_bad_row_are_counted_and_named(self, tmp_path, capsys):
        rows = [{"image": picture(i), "text": f"number {i}"} for i in range(12)]
        rows[2]["image"], rows[3]["image"] = None, b"no picture"
        for name in ("a", "b"):
            write_parquet(tmp_path / f"{name}.parquet", rows)
        (tmp_path / "b.parquet").write_bytes((tmp_path / "b.parquet").read_bytes()[:900])
        assert len(both(Parquet, tmp_path)) == 10
        warning = capsys.readouterr().err
        assert "3 pictures" in warning
        for part in (
            "a.parquet:2 (column image holds no bytes",
            "a.parquet:3 (it is not a picture",
            "b.parquet (the file is no parquet",
        ):
            assert part in warning

    def test_a_dataset_with_splits_keeps_them(self, tmp_path):
        import datasets

        features = datasets.Features({"img": datasets.Image(), "caption": datasets.Value("string")})
        parts = {
            split: datasets.Dataset.from_list(
                [{"img": {"bytes": picture(first + i), "path": None}, "caption": f"{split} {i}"} for i in range(5)],
                features,
            )
            for split, first in (("train", 0), ("validation", 10), ("test", 20))
        }
        datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
        for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
            source = HuggingFace(str(tmp_path / "saved"), 8, split, cache_dir=str(tmp_path / "cache"))
            assert source.captions == [f"{name} {i}" for i in range(5)]
            assert source.images(np.arange(5)).shape == (5, 3, 8, 8)
        selected.cache_clear()
        assert (
            HuggingFace(str(tmp_path / "saved"), 8, "val", cache_dir=str(tmp_path / "cache")).captions[0]
            == "validation 0"
        )

    def test_the_missing_library_and_a_missing_data_set_are_one_line(self, tmp_path, monkeypatch):
        with pytest.raises(ValueError, match=r"cannot be loaded by datasets: .*save_to_disk"):
            HuggingFace(str(tmp_path / "nowhere"), 8, "train")
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(ValueError, match=r"pip install dit\[datasets\]"):
            HuggingFace(str(tmp_path), 8, "train")
