"""Export of an autoencoder to diffusers' pipelines, which compute (raw - shift_factor) * scaling_factor."""

import pytest
import torch
from diffusers import AutoencoderKL

from dit.checkpoints.autoencoder import to_diffusers
from dit.encoders.autoencoder import Identity, PretrainedAutoencoder

from ..encoders.small import saved

STATISTICS = {
    "the config's": {},
    "a number each": {"shift": 0.3, "scale": 2.5},
    "means of channels": {"mean": [0.1, -0.2, 0.3, 0.0], "scale": 2.0},
    "spreads of channels": {"std": [2.0, 0.5, 1.0, 3.0]},
    "both of channels": {"mean": [0.1, -0.2, 0.3, 0.0], "std": [2.0, 0.5, 1.0, 3.0]},
}


def images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("shifts", [False, True], ids=["DiT", "SD3"])
@pytest.mark.parametrize("given", STATISTICS.values(), ids=STATISTICS)
def test_a_pipeline_scales_latents_posteriors_and_pictures_as_here(given, shifts, tmp_path):
    ours = PretrainedAutoencoder(str(saved(tmp_path, "kl_4")), **given)
    config, state = to_diffusers(ours, shifts)
    net = AutoencoderKL.from_config(config).eval()
    net.load_state_dict(state)
    shift, scale = net.config.shift_factor, net.config.scaling_factor
    assert shifts or not shift, "this pipeline has no shift"
    assert net.config.latents_mean is None
    assert net.config.latents_std is None
    with torch.no_grad():
        posterior = net.encode(images()).latent_dist
        torch.testing.assert_close((posterior.mean - shift) * scale, ours.encode(images()), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(posterior.std * scale, ours.posterior(images())[1], atol=1e-5, rtol=1e-5)
        z = ours.encode(images())
        torch.testing.assert_close(net.decode(z / scale + shift).sample, ours.decode(z), atol=1e-5, rtol=1e-5)


def test_means_of_a_config_are_not_used_twice(tmp_path):
    folder = saved(tmp_path, "kl_4", latents_mean=[0.0, 1.0, 2.0, 3.0], latents_std=[1.0, 2.0, 4.0, 8.0])
    config, _ = to_diffusers(PretrainedAutoencoder(str(folder)), shifts=True)
    assert (config["latents_mean"], config["latents_std"]) == (None, None)
    assert (config["scaling_factor"], config["shift_factor"]) == (1.0, 0.0)


def test_an_autoencoder_that_a_pipeline_cannot_scale_gives_none(tmp_path):
    """A scale per channel, or a shift for a pipeline without one, in a network without convolutions to fold them into."""
    bare = str(saved(tmp_path, "kl_16"))
    assert to_diffusers(PretrainedAutoencoder(bare), shifts=True) is not None
    assert to_diffusers(PretrainedAutoencoder(bare), shifts=False) is None
    assert to_diffusers(PretrainedAutoencoder(bare, shift=0.0), shifts=False) is not None
    assert to_diffusers(PretrainedAutoencoder(bare, std=[1.0] * 15 + [2.0]), shifts=True) is None
    assert to_diffusers(PretrainedAutoencoder(str(saved(tmp_path, "tiny"))), shifts=True) is None
    assert to_diffusers(Identity(), shifts=True) is None
