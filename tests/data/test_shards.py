"""Stores: equal files from any number of processes, going on after a kill, and each kind of damage named."""

import json
import os
import signal
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dit.data import shard_writer
from dit.data.captions import all_captions, chosen_caption
from dit.data.latent_dataset import LatentDataset
from dit.data.order import Visit
from dit.data.prepared import Prepared
from dit.data.remote import Unreachable
from dit.data.shapes import Shapes
from dit.data.shard_encoding import Encoding
from dit.data.shard_writer import Limits, write_store
from dit.data.shards import Augmentation, Store
from dit.encoders.autoencoder import Identity
from dit.encoders.classes import ClassEncoder
from dit.encoders.text import WordEncoder, vocabulary
from dit.picture_files import read
from dit.types import from_pixels

ROOT = Path(__file__).parents[2]
COUNT, SHARD = 900, 256  # samples; the least number of samples in a shard, to which the small limit leads
SMALL = Limits(shard_mb=1)


def encoding(source, **changes):
    return Encoding(**({"autoencoder": Identity(), "text": WordEncoder(vocabulary(source.captions), 12)} | changes))


def write(folder, source=None, limits=SMALL, append=False, **changes):
    source = source or Shapes("train", COUNT)
    write_store(Path(folder), source, encoding(source, **changes), limits, append)
    return Path(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store that one process wrote without an interruption."""
    return write(tmp_path_factory.mktemp("stores") / "whole")


@pytest.fixture
def copy(whole, tmp_path):
    """A copy to damage."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in whole.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def begun(folder, code, count=1):
    """Starts `count` processes that each run `code` and write the store at `folder`; returns them."""
    code = f"{code}\nfrom tests.data.test_shards import write\nwrite({str(folder)!r})"
    return [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE) for _ in range(count)]


def test_every_sample_is_what_the_encoders_return(whole):
    source = Shapes("train", COUNT)
    data, text = LatentDataset(whole, 12), WordEncoder(vocabulary(source.captions), 12)
    index = np.array([3, 255, 256, 899, 0, 511, 512, 700, 3])  # the last and the first of shards, and one twice
    batch = data[[Visit(int(i), 0) for i in index]]
    assert len(data) == COUNT
    assert batch.index.tolist() == index.tolist()
    assert torch.equal(batch.x0, from_pixels(torch.from_numpy(source.images(index))).half().float())
    condition = text.encode([source.captions[i] for i in index])
    assert torch.equal(batch.condition.tokens, condition.tokens.half().float())
    assert torch.equal(batch.condition.mask, condition.mask)
    assert torch.equal(batch.condition.pooled, condition.pooled.half().float())


def test_shards_are_bounded_and_described(whole):
    store = Store(whole, verify=True)
    assert [shard.count for shard in store.shards] == [256, 256, 256, 132]
    files = {name for shard in store.shards for name in shard.files}
    assert files == {file.name for file in whole.iterdir() if file.suffix in (".safetensors", ".parquet")}
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["parent"] is None
    assert manifest["sources"] == [{"fingerprint": Shapes("train", COUNT).fingerprint, "count": COUNT}]
    for shard in manifest["shards"]:
        for name, (size, digest) in shard["files"].items():
            assert len((whole / name).read_bytes()) == size
            assert sha256((whole / name).read_bytes()).hexdigest() == digest


def test_a_larger_limit_makes_larger_shards(tmp_path):
    one = 2 * (3 * 32 * 32 + 12 * 64 + 64)  # bytes of a sample
    folder = write(tmp_path / "store", limits=Limits(shard_mb=4))
    assert Store(folder).shards[0].count == 2 ** int(np.log2(4e6 / one)) == 512


def test_text_is_stored_without_padding_and_each_caption_once(whole):
    source = Shapes("train", COUNT)
    for place, first in enumerate(range(0, COUNT, SHARD)):
        shapes = Store(whole).shapes(place)
        captions = sorted(set(source.captions[first : first + SHARD]))
        assert shapes["ends"] == [len(captions)]
        assert shapes["tokens"][0] == sum(len(caption.split()) for caption in captions)


def test_captions_are_read_from_the_sidecars(whole):
    source = Shapes("train", COUNT)
    captions = Prepared(str(whole.parent), whole.name, 32).captions
    assert list(captions) == list(source.captions)
    assert [captions[i] for i in (-1, 0, 256, 899)] == [source.captions[i] for i in (-1, 0, 256, 899)]
    assert captions[250:260] == list(source.captions[250:260])
    with pytest.raises(IndexError):
        captions[COUNT]


def test_class_labels_are_stored(tmp_path):
    source = Shapes("train", 40)
    source.captions = [("cat", "dog")[i % 2] for i in range(40)]
    folder = write(tmp_path / "store", source, text=ClassEncoder(["cat", "dog"]))
    assert LatentDataset(folder, 0)[[Visit(i, 0) for i in (3, 6)]].condition.label.tolist() == [1, 0]


def test_one_of_several_captions_is_chosen_by_seed_epoch_and_sample(tmp_path):
    source = Shapes("train", 300)
    source.captions = [f"a {i % 7}" for i in range(300)]
    source.caption_choices = [((text, 3.0), (f"b {i % 5}", 1.0))[: 1 + i % 2] for i, text in enumerate(source.captions)]
    text = ClassEncoder(sorted({text for pairs in source.caption_choices for text, _ in pairs}))
    folder = write(tmp_path / "store", source, text=text)
    visits = [Visit(i, epoch) for epoch in range(4) for i in range(300)]
    found = LatentDataset(folder, 0, seed=5, choose=True)[visits].condition.label.tolist()
    weights = [[weight for _, weight in pairs] for pairs in source.caption_choices]
    numbers = [chosen_caption(weights[visit.sample], 5, *visit[::-1]) for visit in visits]
    assert {0, 1} == set(numbers)
    pairs = zip(visits, numbers, strict=True)
    assert [text.names[label] for label in found] == [source.caption_choices[visit.sample][n][0] for visit, n in pairs]
    first = LatentDataset(folder, 0, seed=5)[visits].condition.label.tolist()
    assert [text.names[label] for label in first] == source.captions * 4
    prepared = Prepared(str(folder.parent), folder.name, 32)
    assert list(prepared.caption_choices) == source.caption_choices
    assert list(all_captions(prepared)) == list(all_captions(source))
    assert not hasattr(Prepared(str(write(tmp_path / "single").parent), "single", 32), "caption_choices")


# ---------------------------------------------------------------- several processes


def test_two_processes_write_the_same_bytes_as_one(whole, tmp_path):
    processes = begun(tmp_path / "store", "", count=2)
    assert [process.wait() for process in processes] == [0, 0]
    assert contents(tmp_path / "store") == contents(whole)


@pytest.mark.parametrize("workers", [1, 2])
def test_loading_processes_do_not_change_the_bytes(whole, tmp_path, workers):
    assert contents(write(tmp_path / "store", workers=workers)) == contents(whole)


def test_a_device_batch_does_not_change_the_bytes(whole, tmp_path):
    assert contents(write(tmp_path / "store", chunk=100)) == contents(whole)


@pytest.mark.parametrize("moment", ["encode_text", "sidecar", "write_atomic"])
def test_a_killed_process_loses_one_shard_at_most(whole, tmp_path, moment):
    """It is killed in its third shard: before a file, between two files, or before the record."""
    folder = tmp_path / "store"
    calls = {"encode_text": 3, "sidecar": 3, "write_atomic": 9}[moment]
    code = f"""
import os, signal
from dit.data import shard_writer
real, count = shard_writer.{moment}, []
def killing(*args):
    count.append(1)
    if len(count) == {calls}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)
shard_writer.{moment} = killing
"""
    [process] = begun(folder, code)
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "manifest.json").exists()
    with pytest.raises(ValueError, match=r"manifest\.json is missing: .* was not finished"):
        Store(folder)
    before = {name: (folder / name).stat().st_mtime_ns for name in ("00000.safetensors", "00001.json")}
    write(folder)
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before
    assert contents(folder) == contents(whole)


def test_the_shard_of_a_killed_process_is_done_by_another(whole, tmp_path):
    """Two processes; one is killed while it holds a shard, and the other does not wait for it for ever."""
    code = "from dit.data import shard_writer; import time; real = shard_writer.encode_text\n"
    code += "shard_writer.encode_text = lambda *args: (time.sleep(0.5), real(*args))[1]"
    one, other = begun(tmp_path / "store", code, count=2)
    while not list((tmp_path / "store").glob("*.json")):
        assert one.poll() is None
    one.send_signal(signal.SIGKILL)
    assert one.wait() == -signal.SIGKILL
    assert other.wait() == 0
    assert contents(tmp_path / "store") == contents(whole)


# ---------------------------------------------------------------- damage


def cut(file):
    os.truncate(file, file.stat().st_size // 2)


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("name", ["00001.safetensors", "00002.parquet"])
@pytest.mark.parametrize(
    ("damage", "verify", "words"),
    [(Path.unlink, False, "is missing"), (cut, False, "bytes instead of"), (flip, True, "is damaged")],
    ids=["missing", "cut", "flipped"],
)
def test_damage_is_named(copy, name, damage, verify, words):
    damage(copy / name)
    with pytest.raises(ValueError, match=words) as error:
        Store(copy, verify)
    assert str(copy / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_header_is_named_when_it_is_read(copy):
    file = copy / "00000.safetensors"
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(ValueError, match=f"{file} cannot be read"):
        LatentDataset(copy, 12)
    (copy / "00000.parquet").write_bytes(b"\xff" * (copy / "00000.parquet").stat().st_size)
    with pytest.raises(ValueError, match=r"00000\.parquet cannot be read"):
        Store(copy).table(0)


@pytest.mark.parametrize(("content", "words"), [
    (None, "is missing"),
    ("{", "is not JSON"),
    ("{}", "has format None"),
    ("[]", "has format None"),
    ('{"format": 2}', "has format 2"),
    ('{"format": 1}', "is damaged"),
    ('{"format": 1, "size": [1, 1], "sources": [], "shards": [{}]}', "does not describe"),
    ('{"format": 1, "size": [1, 1], "sources": [], "shards": []}', "lists no shard"),
])  # fmt: skip
def test_a_damaged_manifest_is_named(copy, content, words):
    file = copy / "manifest.json"
    file.unlink()
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=words) as error:
        Store(copy)
    assert str(file) in str(error.value)


def test_a_full_disk_is_named_and_loses_nothing(whole, tmp_path):
    """A limit on the size of files stands for the disk: the third shard does not fit."""
    folder = tmp_path / "store"
    code = """
import resource
from dit.data import shard_writer
real, count = shard_writer.encode_text, []
def filling(*args):
    count.append(1)
    if len(count) == 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5))
    return real(*args)
shard_writer.encode_text = filling
"""
    [process] = begun(folder, code)
    stderr = process.communicate()[1].decode()
    assert f"ValueError: cannot write {folder / '00002.safetensors'}: File too large" in stderr
    assert sorted(file.name for file in folder.glob("*.json")) == ["00000.json", "00001.json"]
    assert not list(folder.glob(".*.tmp"))
    assert contents(write(folder)) == contents(whole)


class Files(Shapes):
    """Shapes that are read from files."""

    def __init__(self, folder, count):
        super().__init__("train", count)
        self.files = [folder / f"{row}.png" for row in range(count)]
        for file, image in zip(self.files, super().images(np.arange(count)), strict=True):
            Image.fromarray(image.transpose(1, 2, 0)).save(file)

    def images(self, index):
        return np.stack([read(self.files[row]) for row in index])


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_that_became_unreadable_are_named_and_counted(tmp_path, capsys, workers):
    source = Files(tmp_path, 40)
    source.files[2].write_bytes(source.files[2].read_bytes()[:60])
    source.files[5].unlink()
    with pytest.raises(ValueError, match=r"2 pictures cannot be read, more than max_broken=1: .*2\.png"):
        write(tmp_path / "store", source, Limits(1, max_broken=1), workers=workers)
    folder = write(tmp_path / "store", source, Limits(1, max_broken=2), workers=workers)
    assert "warning: 2 pictures are left out" in capsys.readouterr().err
    [shard] = Store(folder).shards
    assert [str(source.files[row]) in reason for row, reason in zip((2, 5), shard.left_out, strict=True)] == [
        True,
        True,
    ]
    kept = np.array([row for row in range(40) if row not in (2, 5)])
    assert list(Prepared(str(folder.parent), folder.name, 32).captions) == [source.captions[row] for row in kept]
    x0 = LatentDataset(folder, 12)[[Visit(i, 0) for i in range(38)]].x0
    assert torch.equal(x0, from_pixels(torch.from_numpy(source.images(kept))).half().float())


class Deadly(Shapes):
    """Its loading process is killed, as if memory had run out."""

    def images(self, index):
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().images(index)


def test_a_dead_loading_process_ends_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"ended unexpectedly.*workers=1") as error:
        write(tmp_path / "store", Deadly("train", 40), workers=1)
    assert "\n" not in str(error.value)


class Vanished(Shapes):
    def images(self, index):
        if 20 in index:
            raise Unreachable("https://elsewhere/1.tar", "connection refused, 3 times")
        return super().images(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_that_fails_ends_in_its_own_line(tmp_path, workers):
    with pytest.raises(ValueError, match=r"^cannot read https://elsewhere/1\.tar: connection refused, 3 times$"):
        write(tmp_path / "store", Vanished("train", 40), workers=workers, chunk=8)


# ---------------------------------------------------------------- what it was made with


class OtherIdentity(Identity):
    fingerprint = "other"


def test_other_encoders_are_refused_with_the_fields_that_differ(whole):
    store, how = Store(whole), encoding(Shapes("train", COUNT))
    store.check(how.autoencoder, how.text, how.augmentation)
    with pytest.raises(ValueError, match=r"differs from this config in autoencoder \(identity, not other\);"):
        store.check(OtherIdentity(), how.text, how.augmentation)
    with pytest.raises(ValueError, match=r"differs .* in text_encoder \("):
        store.check(how.autoencoder, WordEncoder(["red"]), how.augmentation)
    with pytest.raises(ValueError, match=r"flip \(False, not True\), posterior \(mode, not sample\)"):
        store.check(how.autoencoder, how.text, Augmentation(True, "sample"))


def test_a_store_with_mirror_images_can_be_read_without_them(whole, tmp_path):
    folder = write(tmp_path / "store", augmentation=Augmentation(flip=True))
    Store(folder).check(Identity(), encoding(Shapes("train", COUNT)).text, Augmentation())
    visits = [Visit(i, 0) for i in range(20)]
    plain = LatentDataset(whole, 12)[visits].x0
    assert torch.equal(LatentDataset(folder, 12, augmentation=Augmentation())[visits].x0, plain)
    assert not torch.equal(LatentDataset(folder, 12)[visits].x0, plain)


def test_a_beginning_of_other_pictures_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "store"

    def stopped(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer.Plan, "finish", stopped)
        with pytest.raises(KeyboardInterrupt):
            write(folder)
    with pytest.raises(ValueError, match=r"the beginning of another preparation, which differs in source \("):
        write(folder, Shapes("train", COUNT, seed=1))
    assert len(Store(write(folder))) == COUNT


def test_a_missing_split_and_another_size_are_refused(whole):
    with pytest.raises(ValueError, match="no prepared split val: it has whole"):
        Prepared(str(whole.parent), "val", 32)
    with pytest.raises(ValueError, match=r"data\.size=64: .* were 32 x 32"):
        Prepared(str(whole.parent), "whole", 64)
    with pytest.raises(ValueError, match="has latents and no pictures"):
        Prepared(str(whole.parent), "whole", 32).images(np.array([0]))


# ---------------------------------------------------------------- more pictures


class Listed(Shapes):
    """Rows of shapes, with provenance."""

    def __init__(self, first, count):
        super().__init__("train", 600)
        self.rows, self.captions = np.arange(first, first + count), self.captions[first : first + count]
        self.fingerprint = f"listed {first} {count}"
        digests = [sha256(str(row).encode()).hexdigest() for row in self.rows]
        self.provenance = pa.table({"sha256": digests, "licence": [f"cc{row % 3}" for row in self.rows]})

    def __len__(self):
        return len(self.rows)

    def images(self, index):
        return super().images(self.rows[index])


def test_more_pictures_are_new_shards_and_a_manifest_that_names_its_parent(tmp_path):
    text = WordEncoder(vocabulary(Shapes("train", 600).captions), 12)
    folder = write(tmp_path / "store", Listed(0, 300), text=text)
    before, manifest = contents(folder), (folder / "manifest.json").read_bytes()
    first = LatentDataset(folder, 12)[[Visit(i, 0) for i in range(300)]]
    write(folder, Listed(200, 300), append=True, text=text)  # a hundred of them are there
    after, parent = contents(folder), sha256(manifest).hexdigest()
    assert all(after[name] == data for name, data in before.items() if name != "manifest.json")
    assert json.loads(after["manifest.json"])["parent"] == parent
    assert after[f"manifest-{parent[:12]}.json"] == manifest
    assert [shard.count for shard in Store(folder, verify=True).shards] == [256, 44, 200]
    whole = LatentDataset(folder, 12)[[Visit(i, 0) for i in range(500)]]
    assert torch.equal(whole.x0[:300], first.x0)
    images = torch.from_numpy(Shapes("train", 600).images(np.arange(500)))
    assert torch.equal(whole.x0, from_pixels(images).half().float())
    prepared = Prepared(str(folder.parent), folder.name, 32)
    assert prepared.provenance["licence"].to_pylist() == [f"cc{row % 3}" for row in range(500)]
    write(folder, Listed(200, 300), append=True, text=text)  # the same again
    assert contents(folder) == after
    with pytest.raises(ValueError, match=r"cannot be extended: it differs in text_encoder"):
        write(folder, Listed(500, 50), append=True, text=WordEncoder(["red"], 12))


def test_provenance_travels_into_the_sidecars(tmp_path):
    folder = write(tmp_path / "store", Listed(0, 300))
    tables = [pq.read_table(folder / f"0000{place}.parquet") for place in (0, 1)]
    assert [table.num_rows for table in tables] == [256, 44]
    assert tables[1].column_names == ["caption", "sha256", "licence"]
    assert tables[1]["licence"].to_pylist() == [f"cc{row % 3}" for row in range(256, 300)]
    assert tables[1]["caption"].to_pylist() == Shapes("train", 600).captions[256:300]
