import numpy as np
import pytest
import torch

from dit.data.shapes import Shapes
from dit.data.shapes_checker import ShapesChecker
from dit.encoders.autoencoder import Identity, KLAutoencoder
from dit.types import from_pixels, to_pixels


def test_pixels_survive_the_round_trip():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(to_pixels(from_pixels(pixels)), pixels)
    assert from_pixels(pixels).min() == -1
    assert from_pixels(pixels).max() == 1
    assert to_pixels(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]


def test_identity_is_the_identity():
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    assert torch.equal(Identity().decode(Identity().encode(images)), images)


@pytest.fixture(scope="module")
def shipped():
    return KLAutoencoder("shapes_autoencoder")


def pictures(count, pairs=False):
    source = Shapes("val", count, pairs=pairs)
    return torch.from_numpy(source.images(np.arange(count))), source.captions


def test_the_shipped_autoencoder_keeps_what_the_checker_sees(shipped):
    images, captions = pictures(300)
    again = to_pixels(shipped.decode(shipped.encode(from_pixels(images))))
    right = np.all(list(ShapesChecker()(again, captions).values()), axis=0)
    assert right.mean() >= 0.99


def test_its_latents_have_zero_mean_and_unit_variance(shipped):
    latents = shipped.encode(from_pixels(pictures(200)[0]))
    assert latents.shape == (200, shipped.channels, 32 // shipped.factor, 32 // shipped.factor)
    assert abs(latents.mean()) < 0.1
    assert latents.std() == pytest.approx(1, abs=0.1)


def test_slices_change_nothing(shipped):
    images = from_pixels(pictures(10)[0])
    sliced = KLAutoencoder("shapes_autoencoder", slice_size=3)
    torch.testing.assert_close(sliced.encode(images), shipped.encode(images), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        sliced.decode(sliced.encode(images)), shipped.decode(shipped.encode(images)), atol=1e-4, rtol=0
    )


def test_any_folder_in_diffusers_layout_loads(tmp_path):
    from diffusers import AutoencoderKL

    net = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, layers_per_block=1,
                        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                        scaling_factor=0.5, shift_factor=0.1)  # fmt: skip
    net.save_pretrained(tmp_path)
    ours, images = KLAutoencoder(str(tmp_path)), torch.rand(2, 3, 16, 16) * 2 - 1
    raw = net.eval().encode(images).latent_dist.mode()
    torch.testing.assert_close(ours.encode(images), (raw - 0.1) * 0.5)
    torch.testing.assert_close(ours.decode(ours.encode(images)), net.decode(raw).sample, atol=1e-5, rtol=0)


def test_a_missing_folder_names_those_that_ship():
    with pytest.raises(ValueError, match="shapes_autoencoder"):
        KLAutoencoder("no/such/folder")
