"""A process that is not Gaussian, tokens that are masked, goes through training, sampling and scoring as it is."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from dit.diffusion.guidance import ClassifierFree
from dit.diffusion.noise import generator
from dit.diffusion.objective import Objective
from dit.diffusion.sampler.ancestral import ancestral
from dit.diffusion.time import Uniform, UniformTime
from dit.encoders.classes import ClassEncoder
from dit.metrics.prompt_accuracy import PromptAccuracy
from dit.pipeline import Pipeline, Recipe
from dit.scoring.samples import sample_prompts, score_samples
from dit.types import Condition, Draw

TOKENS, LENGTH = 3, 4
MASK = TOKENS  # one more token
CLASSES = ["zero", "one", "two"]  # class c is the sequence c, c, c, c or c, c + 1, c, c + 1


@dataclass(frozen=True)
class Place:
    t: object
    path: object

    def repeat(self, times):
        return self if isinstance(self.t, float) else Place(self.t.repeat(times), self.path)


@dataclass(frozen=True)
class TokenGuess:
    log_p: torch.Tensor  # (B, L, K)

    def chunk(self, parts):
        return [TokenGuess(part) for part in self.log_p.chunk(parts)]

    def lerp(self, other, weight):
        return TokenGuess(torch.lerp(self.log_p, other.log_p, weight).log_softmax(-1))


class KeyedUniforms:
    """For each position the time when it is unmasked, and the number that chooses its token."""

    def __init__(self, seeds, shape):
        drawn = [torch.rand(2, *shape, generator=generator(seed, 0), dtype=torch.float64) for seed in seeds]
        self.time, self.choice = torch.stack(drawn, dim=1)


class Masking:
    """A token is kept with probability 1 - t."""

    first = 0.0

    def point(self, t):
        return Place(t, self)

    def training_noise(self, shape, generator):
        return torch.rand(tuple(shape), generator=generator, dtype=torch.float64)

    def corrupt(self, x0, noise, point):
        return torch.where(noise < point.t[:, None], MASK, x0)

    def sampling_noise(self, seeds, shape, device="cpu"):
        return KeyedUniforms(seeds, shape)

    def prior(self, point, noise):
        return torch.full(noise.time.shape, MASK)

    def step(self, estimate, x, here, there, noise):
        chosen = (estimate.log_p.double().exp().cumsum(-1) < noise.choice[..., None]).sum(-1).clamp(max=TOKENS - 1)
        return torch.where((x == MASK) & (noise.time > there.t), chosen, x)


class Logits:
    """The network predicts the tokens' probabilities; the loss is the masked bound, cross-entropy over time."""

    outputs = TOKENS

    def call_network(self, network, x, point, condition):
        time = (
            torch.as_tensor(point.t).expand(len(x))
            if isinstance(point.t, torch.Tensor)
            else torch.full((len(x),), point.t)
        )
        return network(x, time.float(), condition)

    def blank_output(self, x):
        return torch.zeros(*x.shape, TOKENS)

    def estimate(self, x, y, point):
        return TokenGuess(y.log_softmax(-1))

    def loss(self, output, x0, noise, point, weight=1.0):
        cross_entropy = nn.functional.cross_entropy(output.flatten(0, 1), x0.flatten(), reduction="none").view(x0.shape)
        masked = noise < point.t[:, None]
        return (weight * (cross_entropy * masked).sum(1) / point.t).float()


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.label = nn.Embedding(len(CLASSES) + 1, 32)
        self.layers = nn.Sequential(
            nn.Linear(LENGTH * (TOKENS + 1) + 32, 64), nn.ReLU(), nn.Linear(64, LENGTH * TOKENS)
        )

    def forward(self, x, time, condition):
        tokens = nn.functional.one_hot(x, TOKENS + 1).flatten(1).float()
        return self.layers(torch.cat([tokens, self.label(condition.label)], dim=1)).view(len(x), LENGTH, TOKENS)


class Oracle:
    """The exact network: class c is c, c, c, c or c, c + 1, c, c + 1, one as likely as the other."""

    @staticmethod
    def sequences(label):
        label = torch.as_tensor(label)
        other = (label + 1) % TOKENS
        return torch.stack([torch.stack([label] * 4), torch.stack([label, other, label, other])])

    def __call__(self, x, time, condition):
        logits = []
        for row, label in zip(x, condition.label, strict=True):
            some = self.sequences(label)
            fits = ((row == MASK) | (some == row)).all(1).double()
            p = (nn.functional.one_hot(some, TOKENS) * (fits / fits.sum())[:, None, None]).sum(0)
            logits.append(p.clamp(min=1e-30).log())
        return torch.stack(logits)


class Codec:
    """Tokens as grey values of a 2 x 2 picture, in the autoencoder's place."""

    channels, factor, fingerprint, posterior = 1, 1, "codec", None

    def latent_shape(self, height, width):
        return (height * width,)

    def decode(self, tokens):
        return (tokens.float() / (TOKENS - 1) * 2 - 1).view(len(tokens), 1, 2, 2).repeat(1, 3, 1, 1)

    def to(self, device):
        return self


def shows_class(images, prompts):
    tokens = (images[:, 0].flatten(1).double() / 255 * (TOKENS - 1)).round().long()
    right = [(Oracle.sequences(CLASSES.index(p)) == row).all(1).any() for p, row in zip(prompts, tokens, strict=True)]
    return {"class": np.array(right)}


def pipeline(network):
    backbone = network if isinstance(network, nn.Module) else nn.Linear(1, 1)
    pipe = Pipeline(backbone, Masking(), Logits(), ClassEncoder(CLASSES), Codec(), (LENGTH,))
    if network is not backbone:
        pipe._wrap = lambda _, precision, cache: network
    return pipe


def recipe(steps=4, scale=1.0):
    return Recipe(ancestral, UniformTime(), steps, ClassifierFree(scale))


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    network, objective = Network(), Objective(Masking(), Logits(), Uniform())
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    draw, losses = torch.Generator().manual_seed(0), []
    for _ in range(400):
        label = torch.randint(3, (64,), generator=draw)
        x0 = torch.stack(
            [Oracle.sequences(c)[i] for c, i in zip(label, torch.randint(2, (64,), generator=draw), strict=True)]
        )
        dropped = torch.rand(64, generator=draw) < 0.1
        condition = Condition(label=torch.where(dropped, 3, label))
        noise = torch.rand(64, LENGTH, generator=draw, dtype=torch.float64)
        u = torch.rand(64, generator=draw, dtype=torch.float64).clamp(1e-3)
        loss = objective(network, Draw(x0, condition, noise, u)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return network, losses


def test_it_trains_towards_the_entropy(trained):
    """The bound is at least -log p(x0): one bit of choice, and what dropped classes cost."""
    _, losses = trained
    end = sum(losses[-50:]) / 50
    assert 0.6 < end < 1.2 < losses[0]  # ln 2 = 0.69


@pytest.mark.parametrize("scale", [1.0, 2.0], ids=["unguided", "guided"])
def test_it_is_sampled_and_scored_by_the_same_code(trained, scale):
    pipe, prompts = pipeline(trained[0]), [CLASSES[i % 3] for i in range(60)]
    pipe.check(recipe(scale=scale))
    made = sample_prompts(pipe, prompts, pipe.encode(prompts), 0, recipe(8, scale), batch_size=16)
    found = score_samples({"accuracy": PromptAccuracy(shows_class)}, made)
    assert found.scores["prompt_accuracy"] > 0.8
    assert found.nfe == (8 if scale == 1 else 16)


def test_a_sample_depends_on_its_seed_alone(trained):
    pipe, prompts, seeds = pipeline(trained[0]), CLASSES * 2, [5, 6, 7, 8, 9, 10]
    whole = pipe(prompts, seeds, recipe()).images
    assert torch.equal(pipe(prompts, seeds, recipe(), batch_size=1).images, whole)
    assert not torch.equal(pipe(prompts, [s + 50 for s in seeds], recipe()).images, whole)


@pytest.mark.slow
def test_one_token_a_step_is_exact():
    """With as many steps as it takes to unmask tokens one by one, the exact network gives the exact joint."""
    pipe = pipeline(Oracle())
    images = pipe(["one"] * 400, range(400), recipe(1000)).images
    tokens = ((images[:, 0].flatten(1) + 1) / 2 * (TOKENS - 1)).round().long()
    same = (tokens == Oracle.sequences(1)[0]).all(1).double().mean()
    either = (tokens[:, None] == Oracle.sequences(1)).all(2).any(1).double().mean()
    assert either > 0.99  # two tokens in one of 1000 steps are rare
    assert abs(same - 0.5) < 0.1
    many = pipe(["one"] * 400, range(400), recipe(1)).images  # all at once: each token by itself
    tokens = ((many[:, 0].flatten(1) + 1) / 2 * (TOKENS - 1)).round().long()
    assert (tokens[:, None] == Oracle.sequences(1)).all(2).any(1).double().mean() < 0.7
