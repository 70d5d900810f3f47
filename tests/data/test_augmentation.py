"""Flips and posterior samples: their distribution, and that they are functions of (seed, epoch, sample)."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dit.data.cache import build_cache, cache_folder
from dit.data.latent_dataset import LatentDataset
from dit.data.module import LatentData
from dit.data.order import KeyedBatches, Visit
from dit.data.shapes import Shapes
from dit.data.shards import Augmentation
from dit.diffusion.noise import generator
from dit.encoders.autoencoder import Identity, PretrainedAutoencoder
from dit.encoders.text import WordEncoder, vocabulary
from dit.types import from_pixels

from ..encoders.small import saved

COUNT = 20
KINDS = [Augmentation(flip, posterior) for flip in (False, True) for posterior in ("mode", "sample")]


@pytest.fixture(scope="module")
def source():
    return Shapes("train", COUNT)


@pytest.fixture(scope="module")
def text(source):
    return WordEncoder(vocabulary(source.captions))


@pytest.fixture(scope="module")
def coder(tmp_path_factory):
    return PretrainedAutoencoder(str(saved(tmp_path_factory.mktemp("autoencoder"), "kl_4")))


@pytest.fixture(scope="module")
def cached(tmp_path_factory, source, text, coder):
    root = tmp_path_factory.mktemp("caches")
    folders = {kind: cache_folder(root, source, coder, text, kind) for kind in KINDS}
    for kind, folder in folders.items():
        build_cache(folder, source, coder, text, kind, chunk=7)
    assert len(set(folders.values())) == len(KINDS)
    return {kind: LatentDataset(folder, text.length, seed=5) for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def sides(source, coder):
    """Mean and standard deviation of each picture and its mirror image, each (2, N, C, h, w)."""
    images = from_pixels(torch.from_numpy(source.images(np.arange(COUNT))))
    both = [coder.posterior(images), coder.posterior(images.flip(-1))]
    return torch.stack([mean for mean, _ in both]), torch.stack([std for _, std in both])


def near(a, b):
    """Whether each of (N, C, h, w) is equal up to float16."""
    return ((a - b).abs() <= 2e-3 * b.abs().clamp(min=1)).flatten(1).all(1)


def test_without_augmentation_every_epoch_is_the_mode(cached, sides):
    data = cached[Augmentation()]
    for epoch in range(3):
        assert near(data[[Visit(i, epoch) for i in range(COUNT)]].x0, sides[0][0]).all()


def test_half_of_the_visits_use_the_mirror_image(cached, sides):
    data, (plain, mirrored) = cached[Augmentation(flip=True)], sides[0]
    assert not near(mirrored, plain.flip(-1)).any()  # the reason why both are kept
    flips = []
    for epoch in range(40):
        x0 = data[[Visit(i, epoch) for i in range(COUNT)]].x0
        is_plain, is_mirror = near(x0, plain), near(x0, mirrored)
        assert (is_plain ^ is_mirror).all()
        flips.append(is_mirror)
    share = torch.stack(flips).double()  # (epochs, samples)
    assert share.mean().item() == pytest.approx(0.5, abs=4 * 0.5 / share.numel() ** 0.5)
    assert (share.mean(0) - 0.5).abs().max() < 4.5 * 0.5 / 40**0.5
    assert (share.mean(1) - 0.5).abs().max() < 4.5 * 0.5 / COUNT**0.5


def test_samples_have_the_mean_and_standard_deviation_of_the_posterior(cached, sides):
    draws = cached[Augmentation(posterior="sample")][[Visit(3, epoch) for epoch in range(2000)]].x0
    mean, std = sides[0][0, 3], sides[1][0, 3]
    assert ((draws.mean(0) - mean) / std * 2000**0.5).abs().max() < 4.5
    assert ((draws.std(0) / std - 1) * 4000**0.5).abs().max() < 4.5


def test_with_both_the_sample_is_of_the_chosen_side(cached, sides):
    visits = [Visit(i, epoch) for epoch in range(20) for i in range(COUNT)]
    flipped = cached[Augmentation(flip=True)][visits].x0
    drawn = cached[Augmentation(True, "sample")][visits].x0
    std = torch.where(
        near(flipped, sides[0][1].repeat(20, 1, 1, 1))[:, None, None, None], *sides[1].flip(0).repeat(1, 20, 1, 1, 1)
    )
    z = (drawn - flipped) / std
    assert z.std().item() == pytest.approx(1, abs=0.02)
    assert z.mean().item() == pytest.approx(0, abs=0.02)


def test_posterior_noise_differs_from_training_noise(cached, sides):
    x0 = cached[Augmentation(posterior="sample")][[Visit(3, 0)]].x0[0]
    z = ((x0 - sides[0][0, 3]) / sides[1][0, 3]).flatten()
    eps = torch.randn(x0.shape, generator=generator(5, 0, 3)).flatten()
    assert torch.corrcoef(torch.stack([z, eps]))[0, 1].abs() < 0.3


def walk(data, steps, batch_size, workers=0, start=0, world=1, seed=1):
    """The latents of all ranks: (index, batch number) -> latent."""
    met = {}
    for rank in range(world):
        order = KeyedBatches(COUNT, batch_size, seed, start, rank, world)
        loader = DataLoader(data, sampler=order, batch_size=None, num_workers=workers)
        for step, batch in enumerate(itertools.islice(loader, steps - start), start):
            met |= {(step, index): x0 for index, x0 in zip(batch.index.tolist(), batch.x0, strict=True)}
    return met


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_workers_ranks_and_a_resume_do_not_change_a_batch(cached):
    data = cached[Augmentation(True, "sample")]
    whole = walk(data, steps=12, batch_size=6)
    assert same(walk(data, steps=12, batch_size=6), whole)
    assert same(walk(data, steps=12, batch_size=6, workers=2), whole)
    assert same(walk(data, steps=12, batch_size=6, world=3), whole)
    assert same(walk(data, steps=12, batch_size=6, start=7), {key: x0 for key, x0 in whole.items() if key[0] >= 7})
    halves = walk(data, steps=24, batch_size=3)  # as accumulation cuts them
    assert same({(step // 2, index): x0 for (step, index), x0 in halves.items()}, whole)
    other = LatentDataset.__new__(LatentDataset)
    other.__dict__ |= data.__dict__ | {"seed": 6}
    assert not any(torch.equal(x0, whole[key]) for key, x0 in walk(other, steps=12, batch_size=6).items())


class At:
    """The attributes of a trainer that the data module reads."""

    accumulate_grad_batches, global_step, global_rank, world_size = 1, 0, 0, 1
    strategy = type("Strategy", (), {"root_device": torch.device("cpu")})


def test_validation_is_never_augmented(tmp_path, source, text, coder):
    val = Shapes("val", 8)
    data = LatentData(source, val, batch_size=8, seed=0)
    data.encode_with(coder, text, tmp_path, Augmentation(True, "sample"))
    data.trainer = At()
    data.prepare_data()
    [batch] = data.val_dataloader()
    mode = coder.encode(from_pixels(torch.from_numpy(val.images(np.arange(8)))))
    assert near(batch.x0, mode).all()
    first = next(iter(data.train_dataloader()[0]))
    assert not near(first.x0, coder.encode(from_pixels(torch.from_numpy(source.images(first.index.numpy()))))).any()


def test_a_posterior_that_the_autoencoder_lacks_is_refused(tmp_path, source, text):
    data = LatentData(source, source, batch_size=8, seed=0)
    with pytest.raises(ValueError, match=r"posterior=sample: .*autoencoder=sd"):
        data.encode_with(Identity(), text, tmp_path, Augmentation(posterior="sample"))
    with pytest.raises(ValueError, match="posterior=mean is neither mode nor sample"):
        Augmentation(posterior="mean")
