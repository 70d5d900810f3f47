"""Several captions for each image and mixtures of sources, in pictures and in cached latents."""

from collections import Counter
from functools import partial
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dit.data.cache import build_cache
from dit.data.latent_dataset import LatentDataset
from dit.data.mixture import Mixture, MixtureBatches, quotas
from dit.data.module import LatentData, PictureData, Pictures
from dit.data.order import Visit
from dit.encoders.autoencoder import Identity
from dit.encoders.text import WordEncoder


class Plain:
    """`count` pictures of one value each."""

    def __init__(self, name, count, size=8, split="train"):
        self.count, self.size = count, size
        self.captions, self.fingerprint = [f"{name} {i}" for i in range(count)], f"{name} {count} {split}"
        self.value = sum(map(ord, name)) % 200

    def __len__(self):
        return self.count

    def images(self, index):
        values = (self.value + np.asarray(index)).astype(np.uint8)
        return np.broadcast_to(values[:, None, None, None], (len(index), 3, self.size, self.size)).copy()


class Several(Plain):
    """Picture i has the captions "one", "two" with weight 3, and "i"."""

    def __init__(self, count=40):
        super().__init__("several", count)
        self.caption_choices = [(("two", 3.0), ("one", 1.0), (f"w{i}", 1.0)) for i in range(count)]
        self.captions = ["two"] * count
        self.fingerprint = f"several {count}"


def visits(epochs, count=40):
    return [Visit(sample, epoch) for epoch in range(epochs) for sample in range(count)]


def mixture(weights=(3, 1), counts=(30, 50), split="train"):
    sources = {name: partial(Plain, name, count) for name, count in zip("ab", counts, strict=True)}
    return Mixture(sources, dict(zip("ab", weights, strict=True)), 8, split)


class TestCaptionChoices:
    def test_training_pictures_take_each_caption_by_its_weight_and_others_the_first(self):
        source = Several()
        assert set(Pictures(source)[visits(3)].captions) == {"two"}
        captions = Pictures(source, seed=4)[visits(30)].captions
        counts = Counter("w" if caption.startswith("w") else caption for caption in captions)
        assert counts["two"] / len(captions) == pytest.approx(0.6, abs=0.05)
        assert counts["one"] / len(captions) == pytest.approx(0.2, abs=0.05)
        assert counts["w"] / len(captions) == pytest.approx(0.2, abs=0.05)
        assert all(c in ("two", "one", f"w{v.sample}") for c, v in zip(captions, visits(30), strict=True))

    def test_cached_latents_take_the_same_captions_as_pictures(self, tmp_path):
        source = Several()
        text = WordEncoder(["one", "two", *(f"w{i}" for i in range(40))], width=8, length=2)
        build_cache(tmp_path / "cache", source, Identity(), text)
        captions = Pictures(source, seed=4)[visits(3)].captions
        assert len(set(captions)) > 10
        cached = LatentDataset(tmp_path / "cache", 2, seed=4, choose=True)[visits(3)].condition.tokens
        assert torch.equal(cached, text.encode(captions).tokens.half().float())
        first = LatentDataset(tmp_path / "cache", 2, seed=4)[visits(3)].condition.tokens
        assert torch.equal(first, text.encode(["two"] * 120).tokens.half().float())

    def test_only_the_training_split_chooses(self):
        source, other = Several(), Several()
        module = PictureData(source, other, batch_size=8, seed=0)
        assert module.read(source).choices is not None
        assert module.read(other).choices is None


class TestMixture:
    def test_images_captions_and_choices_are_those_of_the_parts(self):
        one = mixture()
        assert len(one) == 80
        index = np.array([79, 0, 30, 29, 31])
        parts = [("b", 49), ("a", 0), ("b", 0), ("a", 29), ("b", 1)]
        assert [one.captions[i] for i in index] == [f"{name} {i}" for name, i in parts]
        expected = np.stack([Plain(name, 99).images(np.array([i]))[0] for name, i in parts])
        assert np.array_equal(one.images(index), expected)
        both = Mixture({"a": partial(Plain, "a", 3), "s": lambda **given: Several(2)}, {"a": 1, "s": 1}, 8, "train")
        assert both.caption_choices[2:] == [(("a 2", 1.0),), *Several(2).caption_choices]
        assert one.provenance["mixed_from"].to_pylist() == ["a"] * 30 + ["b"] * 50

    @pytest.mark.parametrize("weights", [(3, 1), (1, 1), (1, 9)], ids=str)
    def test_each_source_has_its_share_of_every_epoch_and_uses_its_samples_evenly(self, weights):
        batches = list(islice(MixtureBatches((30, 50), weights, 8, seed=2), 200))
        rows = sum(batches, [])
        share = weights[0] / sum(weights)
        for epoch in range(20):
            of_a = sum(visit.sample < 30 for visit in rows[80 * epoch : 80 * (epoch + 1)])
            assert of_a == pytest.approx(80 * share, abs=0.5)
        assert len(set(rows)) == len(rows)  # a sample once in each pass
        for low, high in ((0, 30), (30, 80)):
            counts = Counter(visit.sample for visit in rows if low <= visit.sample < high)
            assert max(counts.values()) - min(counts.get(i, 0) for i in range(low, high)) <= 2

    def test_batches_are_a_function_of_seed_and_step_for_any_number_of_ranks(self):
        whole = list(islice(MixtureBatches((30, 50), (3, 1), 8, seed=2), 30))
        assert list(islice(MixtureBatches((30, 50), (3, 1), 8, seed=2, start=17), 13)) == whole[17:]
        parts = [list(islice(MixtureBatches((30, 50), (3, 1), 8, seed=2, rank=r, world=4), 30)) for r in range(4)]
        for step in range(30):
            assert sorted(sum((part[step] for part in parts), [])) == sorted(whole[step])
        assert list(islice(MixtureBatches((30, 50), (3, 1), 8, seed=3), 30)) != whole

    def test_the_data_module_trains_in_these_shares_and_validates_all_held_out_samples(self):
        module = LatentData(mixture(), mixture(split="val"), batch_size=8, seed=5, val_limit=1000)
        found = list(islice(module.order(module.train, 8), 10))
        assert found == list(islice(MixtureBatches((30, 50), (3.0, 1.0), 8, seed=5), 10))
        pictures = PictureData(mixture(), mixture(split="val"), batch_size=8, seed=5, val_limit=1000)
        pictures.trainer = SimpleNamespace(accumulate_grad_batches=1, global_step=0, global_rank=0, world_size=1)
        [loader] = pictures.train_dataloader()
        first = next(iter(loader))
        assert sorted(first.captions) == sorted(mixture().captions[visit.sample] for visit in found[0])
        assert sum(len(batch.captions) for batch in pictures.val_dataloader()) == 80

    def test_quotas_are_whole_and_have_the_given_sum(self):
        assert quotas(80, [3, 1]) == [60, 20]
        assert quotas(10, [1, 1, 1]) == [4, 3, 3]
        with pytest.raises(ValueError, match=r"a share of 0\.001 of 100 samples is less than one"):
            quotas(100, [999, 1])

    FAULTS = [
        ({"a": 1}, {"b": 1}, "data.weights is for b and data.sources for a: give a weight for each source"),
        ({}, {}, "data.weights is for nothing"),
        ({"a": 1}, {"a": 0}, r"data\.weights\.a=0 must be positive"),
        ({"a": 1}, {"a": float("nan")}, r"data\.weights\.a=nan must be positive"),
    ]

    @pytest.mark.parametrize(("sources", "weights", "fault"), FAULTS, ids=[fault[2][:30] for fault in FAULTS])
    def test_bad_weights_are_refused(self, sources, weights, fault):
        with pytest.raises(ValueError, match=fault):
            Mixture(sources, weights, 8, "train")

    def test_a_limit_is_refused(self):
        module = LatentData(mixture(), mixture(), batch_size=8, seed=5, train_limit=20)
        with pytest.raises(ValueError, match="train_limit=20: a mixture has no limit"):
            module.order(module.train, 8)
