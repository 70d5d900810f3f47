"""Statistics of latents, on pictures whose statistics are known."""

import math

import numpy as np
import pytest
import torch

from dit.encoders.autoencoder import Identity, PretrainedAutoencoder
from dit.encoders.statistics import measure
from dit.types import from_pixels

from .small import saved, small


def pictures(count, seed=0):
    """Noise about a random level per picture: the values within one picture are correlated."""
    draw = np.random.default_rng(seed)
    levels = draw.normal((100, 120, 140), 20, (count, 3))[:, :, None, None]
    noise = draw.normal(0, 10, (count, 3, 16, 16))
    return torch.from_numpy((levels + noise).clip(0, 255).astype(np.uint8))


def test_statistics_in_parts_are_those_of_all_values():
    pixels = pictures(50)
    found, values = measure(Identity(), pixels.split(7)), from_pixels(pixels).double()
    assert found["pictures"] == 50
    assert found["mean"] == pytest.approx(values.mean((0, 2, 3)).tolist(), abs=1e-6)
    assert found["std"] == pytest.approx(values.std((0, 2, 3), correction=0).tolist(), abs=1e-6)
    assert found["shift"] == pytest.approx(values.mean().item(), abs=1e-6)
    assert found["scale"] == pytest.approx(1 / values.std(correction=0).item(), rel=1e-6)
    assert found["psnr"] is None


def test_raw_latents_are_measured_before_shift_and_scale(tmp_path):
    """With the measured statistics, latents have zero mean and unit variance, per channel or over all channels."""
    pixels, folder = pictures(20), str(saved(tmp_path, "kl_16"))
    found = measure(PretrainedAutoencoder(folder), pixels.split(6))
    raw = small("kl_16").encode(from_pixels(pixels)).latent_dist.mode()
    assert found["mean"] == pytest.approx(raw.mean((0, 2, 3)).tolist(), abs=1e-5)
    assert found["std"] == pytest.approx(raw.std((0, 2, 3), correction=0).tolist(), abs=1e-5)
    z = PretrainedAutoencoder(folder, mean=found["mean"], std=found["std"]).encode(from_pixels(pixels))
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(16), atol=1e-3, rtol=0)
    z = PretrainedAutoencoder(folder, shift=found["shift"], scale=found["scale"]).encode(from_pixels(pixels))
    assert z.mean().item() == pytest.approx(0, abs=1e-4)
    assert z.std().item() == pytest.approx(1, abs=1e-3)


def test_standard_errors_are_the_scatter_of_many_measurements():
    found = [measure(Identity(), [pictures(60, seed)]) for seed in range(150)]
    for name in ("mean", "std"):
        scatter = np.std([one[name] for one in found], axis=0)
        assert np.mean([one[f"{name}_se"] for one in found], axis=0) == pytest.approx(scatter, rel=0.25)
    for name in ("shift", "scale"):
        scatter = np.std([one[name] for one in found])
        assert np.mean([one[f"{name}_se"] for one in found]) == pytest.approx(scatter, rel=0.25)


class Coarse(Identity):
    """Decodes every value 4 levels brighter, and the last picture of a batch 12 levels."""

    def decode(self, latents):
        off = torch.full((len(latents), 1, 1, 1), 4 / 127.5)
        off[-1] = 12 / 127.5
        return latents + off


def test_psnr_is_that_of_the_mean_square_error():
    found = measure(Coarse(), [pictures(4).clamp(0, 200)])
    squared = np.array([16, 16, 16, 144])
    assert found["psnr"] == pytest.approx(10 * math.log10(255**2 / squared.mean()))
    error = squared.std(ddof=1) / 2
    assert found["psnr_se"] == pytest.approx(10 / math.log(10) * error / squared.mean())


def test_one_picture_is_refused():
    with pytest.raises(ValueError, match="take at least 2"):
        measure(Identity(), [pictures(1)])


def test_equal_pictures_are_refused():
    with pytest.raises(ValueError, match="the same number"):
        measure(Identity(), [torch.full((4, 3, 8, 8), 100, dtype=torch.uint8)])
