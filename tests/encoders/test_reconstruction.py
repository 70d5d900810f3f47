"""The quality of reconstructions in numbers and words."""

import pytest
import torch

from dit.data.order import subset
from dit.data.shapes import Shapes
from dit.encoders.reconstruction import MARGIN, Quality, shrunk, squared_errors
from dit.encoders.statistics import measure

from .small import saved


def shapes():
    return torch.from_numpy(Shapes("val", 32).images(subset(32, 16)))


def test_psnr_is_that_of_the_mean_square_error():
    errors = torch.tensor([4.0, 16.0], dtype=torch.float64)
    found = Quality.of(errors, torch.tensor([40.0, 60.0]))
    assert found.psnr == pytest.approx(10 * torch.log10(torch.tensor(255.0**2 / 10)).item())
    assert found.halved == pytest.approx(10 * torch.log10(torch.tensor(255.0**2 / 50)).item())
    assert found.n == 2


def test_flat_pictures_lose_nothing_by_halving_and_edges_do():
    flat = torch.full((2, 3, 8, 8), 77, dtype=torch.uint8)
    assert torch.equal(shrunk(flat, 0.5), flat)
    checked = (255 * ((torch.arange(8)[:, None] + torch.arange(8)) % 2)).expand(2, 3, 8, 8).to(torch.uint8)
    assert squared_errors(checked, shrunk(checked, 0.5)).min() > 100**2
    assert shrunk(torch.zeros(1, 3, 1, 1, dtype=torch.uint8), 0.5).shape == (1, 3, 1, 1)


@pytest.mark.parametrize(("psnr", "word"), [
    (16.0, "too little: 16.0 dB"), (21.9, "too little"), (22.1, "soft: 22.1 dB"), (22 + MARGIN + 0.1, "enough: 25.1 dB"),
])  # fmt: skip
def test_the_verdict_compares_with_half_the_resolution(psnr, word):
    verdict = Quality(100, psnr, 0.1, 22.0).verdict()
    assert verdict.startswith(word)
    assert "half their resolution have 22.0 dB" in verdict
    assert ("train longer" in verdict) == (psnr < 22)


def test_pictures_without_an_error_are_enough():
    assert Quality.of(torch.zeros(3, dtype=torch.float64), torch.ones(3)).verdict().startswith("enough")


def test_the_measure_of_an_autoencoder_has_a_verdict(tmp_path):
    from dit.encoders.autoencoder import PretrainedAutoencoder

    good = measure(PretrainedAutoencoder("shapes_autoencoder"), [shapes()])
    random = measure(PretrainedAutoencoder(str(saved(tmp_path, "kl_4"))), [shapes()])
    assert good["verdict"].startswith("enough")
    assert random["verdict"].startswith("too little")
    assert good["psnr_halved"] == random["psnr_halved"]
