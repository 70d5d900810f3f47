"""Latents of any shape: nothing between the data and the decoder counts their axes."""

from functools import partial

import pytest
import torch
from torch import nn

from dit.diffusion.guidance import AdaptiveProjected, ClassifierFree, Rescaled
from dit.diffusion.objective import Objective
from dit.diffusion.path import Linear
from dit.diffusion.prediction import Flow
from dit.diffusion.sampler.ddim import ddim
from dit.diffusion.sampler.multistep import dpmpp
from dit.diffusion.sampler.runge_kutta import heun
from dit.diffusion.sampler.stochastic import edm
from dit.diffusion.time import Uniform, UniformTime
from dit.encoders.classes import ClassEncoder
from dit.pipeline import Pipeline, Recipe
from dit.types import Condition, Draw

from .test_pipeline import PROMPTS, pipeline, recipe

VIDEO, SIGNAL = (2, 3, 4, 4), (2, 5)  # (C, T, H, W) and (C, L)


class Anything(nn.Module):
    """A network for samples of any shape."""

    def __init__(self):
        super().__init__()
        self.label = nn.Embedding(4, 1)

    def forward(self, x, time, condition):
        shift = self.label(condition.label).view(-1, *[1] * (x.dim() - 1))
        return torch.tanh(x + shift)


class Unchanged:
    channels, factor, fingerprint, posterior = 2, 1, "unchanged", None

    def decode(self, latents):
        return latents

    def to(self, device):
        return self


def of_shape(shape):
    torch.manual_seed(0)
    return Pipeline(Anything(), Linear(), Flow(), ClassEncoder(["a", "b", "c"]), Unchanged(), shape)


@pytest.mark.parametrize("shape", [VIDEO, SIGNAL], ids=["video", "signal"])
@pytest.mark.parametrize(
    "guidance", [ClassifierFree(3.0), Rescaled(3.0), AdaptiveProjected(3.0)], ids=["cfg", "rescaled", "apg"]
)
@pytest.mark.parametrize(
    "sampler", [ddim, heun, dpmpp, edm, partial(ddim, eta=1.0)], ids=["ddim", "heun", "dpmpp", "edm", "sde"]
)
def test_samples_of_any_shape(shape, guidance, sampler):
    pipe, how = of_shape(shape), Recipe(sampler, UniformTime(0.99), 4, guidance)
    pipe.check(how)
    whole = pipe(["a", "b", "c"], [1, 2, 3], how).images
    assert whole.shape == (3, *shape)
    torch.testing.assert_close(pipe(["b"], [2], how).images[0], whole[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [VIDEO, SIGNAL], ids=["video", "signal"])
def test_a_loss_of_any_shape(shape):
    network, noise = Anything(), torch.randn(4, *shape)
    u = torch.linspace(0.1, 0.9, 4, dtype=torch.float64)
    losses = Objective(Linear(), Flow(), Uniform())(
        network, Draw(0 * noise, Condition(label=torch.arange(4)), noise, u)
    )
    assert losses.shape == (4,)


def test_one_model_draws_several_sizes():
    pipe = pipeline()
    small = pipe(PROMPTS[:2], [1, 2], recipe()).images
    wide = pipe(PROMPTS[:2], [1, 2], recipe(), shape=pipe.autoencoder.latent_shape(32, 48)).images
    assert small.shape == (2, 3, 32, 32)
    assert wide.shape == (2, 3, 32, 48)
    with pytest.raises(ValueError, match="30x32 pixels: each side must be a multiple of the autoencoder's factor 4"):
        pipe.autoencoder.latent_shape(32, 30)


def test_gradients_flow_through_sampling_where_asked():
    pipe = pipeline()
    condition = pipe.encode(PROMPTS[:2])
    tokens = condition.tokens.clone().requires_grad_()
    asked = Condition(tokens, condition.mask, condition.pooled)
    pipe(asked, [1, 2], recipe(), gradients=True).images.square().sum().backward()
    assert tokens.grad.abs().max() > 0
    assert all(p.grad is not None for name, p in pipe.backbone.named_parameters() if "table" not in name)
    assert not pipe(asked, [1, 2], recipe()).images.requires_grad


def test_a_trajectory_is_seen_point_by_point():
    pipe, seen = pipeline(), []
    images = pipe(PROMPTS[:2], [1, 2], recipe(steps=5), watch=lambda *what: seen.append(what)).images
    points = recipe().grid(pipe.path, 5)
    assert [point.t for point, _, _ in seen] == [point.t for point in points[:-1]]
    assert all(x.shape == estimate.x0.shape == (2, 4, 8, 8) for _, x, estimate in seen)
    torch.testing.assert_close(pipe.autoencoder.decode(seen[-1][2].x0), images)  # the last step jumps to x0
