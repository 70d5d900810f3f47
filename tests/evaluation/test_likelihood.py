"""Bits per dimension of a model whose density is known: every pixel N(0.1, 0.4^2), independent."""

import numpy as np
import pytest
import torch
from torch import nn

from dit.diffusion.path import Linear
from dit.diffusion.prediction import Flow
from dit.diffusion.time import UniformLogSNR
from dit.encoders.autoencoder import Identity
from dit.encoders.text import WordEncoder
from dit.evaluation.likelihood import PIXEL, BitsPerDim, uniform
from dit.pipeline import Pipeline
from dit.types import from_pixels

MEAN, STD = 0.1, 0.4


class Gaussian(nn.Module):
    """The exact flow of the data, as a network."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x, time, condition):
        t = (time / 1000).view(-1, 1, 1, 1).clamp(max=1 - 1e-6)
        x0 = MEAN + (1 - t) * STD**2 / ((1 - t) ** 2 * STD**2 + t**2) * (x - (1 - t) * MEAN)
        return (x - x0) / t


class Grey:
    captions = ["grey"] * 12
    fingerprint = "grey"

    def __len__(self):
        return 12

    def images(self, index):
        draw = np.random.default_rng(0).normal(127.5 * (1 + MEAN), 127.5 * STD, (12, 3, 4, 4))
        return draw.round().clip(0, 255).astype(np.uint8)[index]


def scored(batch_size, count=12):
    pipeline = Pipeline(Gaussian(), Linear(), Flow(), WordEncoder(["grey"]), Identity(), (3, 4, 4))
    return BitsPerDim(UniformLogSNR(-5, 6), 100, count)(pipeline, Grey(), 7, batch_size)


def test_a_known_density_is_found_to_a_few_thousandths_of_a_bit():
    data = Grey()
    x = from_pixels(torch.from_numpy(data.images(np.arange(12)))) + PIXEL * (uniform(range(12), (3, 4, 4), 7) - 0.5)
    exact = -torch.distributions.Normal(MEAN, STD).log_prob(x).mean() / np.log(2) - np.log2(PIXEL)
    made = scored(12)
    assert made["bits_per_dim"] == pytest.approx(float(exact), abs=3e-3)
    assert 0 < made["bits_per_dim_error"] < 0.1


def test_the_score_does_not_depend_on_the_batch():
    assert scored(5)["bits_per_dim"] == pytest.approx(scored(12)["bits_per_dim"], abs=1e-5)


def test_one_picture_has_no_error():
    with pytest.raises(ValueError, match="count=1"):
        BitsPerDim(UniformLogSNR(), 10, 1)
