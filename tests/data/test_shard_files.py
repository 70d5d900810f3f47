"""Prepared shards at a URL and in an object store: batches equal to those of the folder, copies, and stores that vanish."""

import shutil

import fsspec
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dit.data import remote, shard_files
from dit.data.latent_dataset import LatentDataset
from dit.data.order import KeyedBatches, Visit
from dit.data.prepared import Prepared
from dit.data.shapes import Shapes
from dit.data.shard_encoding import Encoding
from dit.data.shard_writer import Limits, write_store
from dit.data.shards import Augmentation, Store
from dit.encoders.autoencoder import Identity
from dit.encoders.text import WordEncoder, vocabulary

from .server import Server


class Captioned(Shapes):
    """Shapes of which every second one has two captions."""

    def __init__(self, split, count):
        super().__init__(split, count)
        captions = list(self.captions)
        self.caption_choices = [((text, 2.0), (captions[0], 1.0))[: 1 + i % 2] for i, text in enumerate(captions)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    for split, count in (("train", 600), ("val", 40)):
        source = Captioned(split, count)
        how = Encoding(Identity(), WordEncoder(vocabulary(Shapes("train", 600).captions), 12), Augmentation(flip=True))
        write_store(root / split, source, how, Limits(1))
    return root


@pytest.fixture
def server(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "WAIT", 0.01)
    root = shutil.copytree(folder, tmp_path / "served")
    served = Server(root)
    served.root = root
    yield served
    served.stop()


@pytest.fixture(params=["http", "memory"])
def url(request, server):
    if request.param == "http":
        return server.url
    store = fsspec.filesystem("memory")
    for file in server.root.rglob("*.*"):
        store.pipe_file(f"/bucket/{file.relative_to(server.root)}", file.read_bytes())
    return "memory://bucket"


def batches(where, **options):
    data = LatentDataset(Store(where, **options), None, seed=3, choose=True)
    rows = np.array([[0, 255, 256, 7, 7, 400], [599, 511, 512, 13, 14, 15]])
    return [data[[Visit(int(i), epoch) for i in index]] for epoch, index in enumerate(rows)]


def same(one, other):
    def parts(batch):
        return [part for part in (batch.x0, batch.condition.tokens, batch.condition.pooled) if part is not None]

    return all(all(map(torch.equal, parts(a), parts(b))) for a, b in zip(one, other, strict=True))


def test_batches_by_ranges_of_bytes_are_those_of_the_folder(folder, url):
    local = batches(folder / "train")
    assert same(batches(f"{url}/train"), local)
    assert same(batches(f"{url}/train", verify=True), local)
    here, there = (Prepared(str(where), "val", 32) for where in (folder, url))
    assert list(there.captions) == list(here.captions)
    assert list(there.caption_choices) == list(here.caption_choices)
    assert there.fingerprint == here.fingerprint


def test_only_the_rows_that_are_used_are_read(server, monkeypatch):
    data = LatentDataset(Store(f"{server.url}/train"), 12)
    data[[Visit(3, 0)]]  # headers and small arrays
    read, real = [], shard_files.read_ranges
    monkeypatch.setattr(shard_files, "read_ranges", lambda wanted: read.extend(wanted) or real(wanted))
    data[[Visit(7, 0)]]
    latent, token, pooled = 2 * 2 * 3 * 32 * 32, 2 * 64, 2 * 64
    lengths = [length for _, _, length in read]
    assert lengths[0] == latent
    assert lengths[1] % token == 0
    assert 0 < lengths[1] <= 12 * token
    assert lengths[2:] == [pooled]


def test_loading_processes_read_a_remote_store(folder, server):
    order = [batch for batch, _ in zip(KeyedBatches(600, 8, seed=1), range(4), strict=False)]
    here, there = (LatentDataset(Store(where), 12) for where in (folder / "train", f"{server.url}/train"))
    loaded = list(DataLoader(there, sampler=order, batch_size=None, num_workers=2))
    assert same(loaded, [here[visits] for visits in order])


def test_copies_are_made_once_and_compared(folder, server, tmp_path):
    copies = str(tmp_path / "copies")
    assert same(batches(f"{server.url}/train", copies=copies), batches(folder / "train"))
    kept = list((tmp_path / "copies").iterdir())
    assert {file.suffix for file in kept} == {".safetensors"}
    assert len(kept) == len(Store(folder / "train").shards)


def test_a_copy_that_arrives_damaged_is_named_and_not_kept(server, tmp_path):
    file = server.root / "train" / "00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    data = LatentDataset(Store(f"{server.url}/train", copies=str(tmp_path / "copies")), 12)
    with pytest.raises(ValueError, match=r"cannot read http.*00001\.safetensors: it is damaged: .* SHA-256"):
        data[[Visit(300, 0)]]
    assert len(list((tmp_path / "copies").iterdir())) == 1  # shard 0
    with pytest.raises(ValueError, match=r"http.*00001\.safetensors is damaged"):
        Store(f"{server.url}/train", verify=True)


@pytest.mark.parametrize("name", ["00001.safetensors", "00000.parquet", "manifest.json"])
def test_a_missing_and_a_shortened_remote_file_are_named_when_the_store_is_opened(server, name):
    file = server.root / "train" / name
    if name != "manifest.json":
        content = file.read_bytes()
        file.write_bytes(content[:-1])
        with pytest.raises(ValueError, match=f"{name} has {len(content) - 1} bytes instead of {len(content)}"):
            Store(f"{server.url}/train")
    file.unlink()
    with pytest.raises(ValueError, match=rf"^http://.*/train/{name} is missing"):
        Store(f"{server.url}/train")


def test_a_store_that_vanishes_is_named_in_one_line(server):
    data = LatentDataset(Store(f"{server.url}/train"), 12)
    data[[Visit(3, 0)]]
    server.stop()
    with pytest.raises(ValueError, match=rf"cannot read {server.url}/train/00000\.safetensors: .*, 3 times") as error:
        data[[Visit(i, 0) for i in range(20)]]
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=rf"cannot read {server.url}/train/parts\.json: .*, 3 times"):
        Store(f"{server.url}/train")


def test_a_request_that_fails_once_is_tried_again(folder, server, monkeypatch):
    expected = batches(folder / "train")
    handler = server.server.RequestHandlerClass.func
    real, failing = handler.do_GET, []

    def unreliable(self, body=True):
        failing.append(body)
        return self.send_error(503) if body and len(failing) % 5 == 0 else real(self, body)

    monkeypatch.setattr(handler, "do_GET", unreliable)
    assert same(batches(f"{server.url}/train"), expected)
    assert len(failing) > 30


def test_a_server_that_ignores_ranges_is_named(folder, monkeypatch):
    monkeypatch.setattr(remote, "WAIT", 0.01)
    server = Server(folder, ranges=False)
    try:
        with pytest.raises(ValueError, match="its server ignores ranges of bytes: copy the file"):
            batches(f"{server.url}/train")
    finally:
        server.stop()
