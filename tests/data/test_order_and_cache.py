import tracemalloc
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dit.data import cache
from dit.data.cache import build_cache, cache_folder
from dit.data.latent_dataset import LatentDataset
from dit.data.module import PictureData
from dit.data.order import STORED, KeyedBatches, Permutation, Visit, subset
from dit.data.shapes import Shapes
from dit.diffusion.noise import generator
from dit.encoders.autoencoder import Identity
from dit.encoders.text import WordEncoder, vocabulary


def batches(steps, **kw):
    return list(islice(KeyedBatches(**({"count": 23, "batch_size": 6, "seed": 1} | kw)), steps))


def test_every_epoch_visits_each_sample_once():
    visits = sum(batches(23, batch_size=6), [])
    for epoch in range(6):
        assert sorted(visits[23 * epoch : 23 * (epoch + 1)]) == [Visit(index, epoch) for index in range(23)]
    rows = [visit.sample for visit in visits]
    assert rows[:23] != rows[23:46]


def test_starting_later_gives_the_same_batches():
    assert batches(10)[7:] == batches(3, start=7)


def test_ranks_split_each_batch():
    whole, parts = batches(5), [batches(5, rank=r, world=3) for r in range(3)]
    for step in range(5):
        assert sorted(whole[step]) == sorted(sum((part[step] for part in parts), []))
        assert len({len(part[step]) for part in parts}) == 1


def test_a_subset_is_used_like_a_whole_data_set():
    among = np.array([4, 9, 17, 30])
    visits = sum(batches(4, count=4, batch_size=3, among=among), [])
    assert [
        Visit(int(among[visit.sample]), visit.epoch) for visit in sum(batches(4, count=4, batch_size=3), [])
    ] == visits


class Sorted:
    """100 pictures of each of 20 classes, one class after the other."""

    captions = [f"class {i}" for i in range(20) for _ in range(100)]
    fingerprint = "sorted"

    def __len__(self):
        return len(self.captions)

    def images(self, index):
        return np.zeros((len(index), 3, 2, 2), np.uint8)


def data(rank=0, world=1, seed=0, **limits):
    module = PictureData(Sorted(), Sorted(), batch_size=10, seed=seed, **limits)
    module.trainer = SimpleNamespace(accumulate_grad_batches=1, global_step=0, global_rank=rank, world_size=world)
    return module


def test_a_limited_validation_is_a_random_subset_split_between_ranks():
    whole = sum((batch.captions for batch in data(val_limit=60).val_dataloader()), [])
    assert len(whole) == 60
    assert len(set(whole)) > 15  # the first 60 pictures are of one class
    parts = [batch for r in range(2) for batch in data(r, 2, seed=1, val_limit=60).val_dataloader()]
    assert sorted(sum((batch.captions for batch in parts), [])) == sorted(whole)
    assert len(torch.cat([batch.index for batch in parts]).unique()) == 60
    assert sum(len(batch.captions) for batch in data(val_limit=5000).val_dataloader()) == 2000


def test_a_limited_training_uses_a_fixed_subset_of_all_classes():
    met = [set(), set()]
    for found, seed in zip(met, (0, 1), strict=True):
        for batch in islice(data(seed=seed, train_limit=40).train_dataloader()[0], 12):
            found |= set(batch.index.tolist())
    assert met[0] == met[1]
    assert len(met[0]) == 40
    assert len({Sorted.captions[i] for i in met[0]}) > 10
    with pytest.raises(ValueError, match="train_limit=0 must be at least 1"):
        data(train_limit=0)


def test_the_seed_changes_the_order():
    assert batches(3) != batches(3, seed=2)


@pytest.mark.parametrize(("size", "world"), [(0, 1), (-4, 1), (6, 4)])
def test_a_batch_that_cannot_be_split_is_refused(size, world):
    with pytest.raises(ValueError, match=f"batch_size={size}"):
        KeyedBatches(10, size, 0, world=world)


@pytest.mark.parametrize("count", [STORED, STORED + 1, 3 * STORED + 7])
def test_a_permutation_is_a_bijection_without_a_trend(count):
    order = Permutation(count, 3, 4)(np.arange(count))
    assert (np.sort(order) == np.arange(count)).all()
    assert abs(np.corrcoef(order, np.arange(count))[0, 1]) < 4.5 / count**0.5
    steps = np.diff(order)  # in a random order neighbours are a third of the range apart
    assert np.abs(steps).mean() == pytest.approx(count / 3, rel=0.01)


def test_a_large_permutation_is_a_function_of_its_keys():
    places = np.arange(0, 10**9, 10**6)
    order = Permutation(10**9, 3, 4)
    assert (order(places) == Permutation(10**9, 3, 4)(places)).all()
    assert [int(order(places[i : i + 1])[0]) for i in range(5)] == order(places[:5]).tolist()
    assert (order(places) < 10**9).all()
    for keys in ((3, 5), (4, 4)):
        assert (Permutation(10**9, *keys)(places) == order(places)).sum() < 3


def test_a_small_permutation_is_that_of_torch():
    """So that runs on small data keep their results."""
    order = Permutation(1000, 3, 4)(np.arange(1000))
    assert order.tolist() == torch.randperm(1000, generator=generator(3, 4)).tolist()


def test_the_order_of_a_billion_samples_takes_no_memory_and_no_time():
    tracemalloc.start()
    batches = iter(KeyedBatches(10**9, 256, seed=0, start=10**7, rank=1, world=2))
    first = next(batches)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
    assert first == next(iter(KeyedBatches(10**9, 256, seed=0, start=10**7)))[1::2]
    assert len({visit.sample for visit in first}) == 128
    assert {visit.epoch for visit in first} == {10**7 * 256 // 10**9}


def test_a_subset_is_random_and_begins_with_smaller_subsets():
    assert sorted(subset(50, None)) == list(range(50))
    assert list(subset(50, 80)) == list(subset(50, None))
    assert list(subset(50, 7)) == list(subset(50, 20)[:7])
    assert list(subset(50, 7)) != list(subset(50, 7, seed=1))
    sorted_by_class = np.repeat(np.arange(50), 100)
    assert len(set(sorted_by_class[subset(5000, 100)])) > 35  # the first hundred samples are of one class


@pytest.fixture
def shapes():
    return Shapes("train", 30)


def test_the_cache_returns_the_encoders_outputs(tmp_path, shapes):
    text = WordEncoder(vocabulary(shapes.captions), length=12)
    folder = cache_folder(tmp_path, shapes, Identity(), text)
    build_cache(folder, shapes, Identity(), text, chunk=7)
    batch = LatentDataset(folder, text.length)[[Visit(4, 0), Visit(0, 2), Visit(29, 1)]]
    index = np.array([4, 0, 29])
    assert batch.index.tolist() == [4, 0, 29]
    expected = torch.from_numpy(shapes.images(index)).float() / 127.5 - 1
    torch.testing.assert_close(batch.x0, expected, atol=1e-3, rtol=0)
    condition = text.encode([shapes.captions[i] for i in index])
    assert torch.equal(batch.condition.mask, condition.mask)
    torch.testing.assert_close(batch.condition.tokens, condition.tokens, atol=5e-3, rtol=0)
    torch.testing.assert_close(batch.condition.pooled, condition.pooled, atol=5e-3, rtol=0)


def test_long_captions_are_reported_once_for_the_whole_cache(tmp_path, shapes, capsys):
    text = WordEncoder(vocabulary(shapes.captions), length=4)
    build_cache(tmp_path / "cache", shapes, Identity(), text, chunk=7)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert f"and of {len(set(shapes.captions)) - 1} more" in warnings[0]


def test_other_data_have_another_cache(tmp_path, shapes):
    words = vocabulary(shapes.captions)
    text, wider = WordEncoder(words), WordEncoder(words, width=96)
    folders = {
        cache_folder(tmp_path, source, Identity(), encoder)
        for source in (shapes, Shapes("train", 30, seed=1), Shapes("train", 31), Shapes("val", 30))
        for encoder in (text, wider)
    }
    assert len(folders) == 8


def test_a_half_written_cache_is_written_again(tmp_path, shapes):
    text = WordEncoder(vocabulary(shapes.captions))
    folder = cache_folder(tmp_path, shapes, Identity(), text)
    folder.mkdir(parents=True)
    (folder / "00000.safetensors").write_bytes(b"half")
    build_cache(folder, shapes, Identity(), text)
    assert len(LatentDataset(folder, text.length)) == 30
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]


def test_other_code_has_another_cache(tmp_path, shapes, monkeypatch):
    text = WordEncoder(vocabulary(shapes.captions))
    before = cache_folder(tmp_path, shapes, Identity(), text)
    rooms = []
    monkeypatch.setattr(cache, "code_digest", lambda *found: rooms.extend(found) or "of other code")
    assert cache_folder(tmp_path, shapes, Identity(), text) != before
    assert {"encoders", "picture_files", "data/shard_encoding", "data/shard_writer", "data/shapes"} <= set(rooms)
    assert not any(room.startswith(("cli", "training", "evaluation")) for room in rooms)


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path, shapes):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write .*file/cache"):
        build_cache(tmp_path / "file" / "cache", shapes, Identity(), WordEncoder(vocabulary(shapes.captions)))
