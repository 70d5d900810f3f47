"""The laws of the noise: that of a Brownian path for each seed."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch

from dit.diffusion.noise import TICKS, Noise, brownian_time, generator
from dit.diffusion.path import Linear
from dit.diffusion.sampler.ddim import ddim
from dit.diffusion.sampler.ddpm import ddpm
from dit.diffusion.sampler.multistep import dpmpp, midpoint
from dit.diffusion.sampler.singlestep import dpmpp_2s
from dit.diffusion.sampler.stochastic import edm, euler_maruyama
from dit.diffusion.time import Karras, Leading, Trailing, UniformLogSNR, UniformTime, points_at

from .conftest import PATHS

MANY = 40_000


def at(*ticks):
    """Points of the linear path, whose clock is t."""
    return [Linear().point(tick / TICKS) for tick in ticks]


def test_the_start_is_what_it_was_before_paths():
    """The samples of deterministic samplers stay what they were."""
    made = Noise([5, 6], (3, 4)).start()
    for row, seed in zip(made, (5, 6), strict=True):
        assert torch.equal(row, torch.randn(3, 4, generator=generator(seed, 0)))


@pytest.mark.parametrize("shape", [(3, 4), (4, 9, 9), (4, 64, 64)])
def test_noise_is_the_same_to_the_bit_in_any_batch(shape):
    points, seeds = UniformTime()(Linear(), 7), [5, 6, 7, 8, 9]
    together = Noise(seeds, shape)
    alone = [Noise([seed], shape) for seed in seeds]
    assert all(torch.equal(row, one.start()[0]) for row, one in zip(together.start(), alone, strict=True))
    for here, there in pairwise(points):
        for row, one in zip(together(here, there), alone, strict=True):
            assert torch.equal(row, one(here, there)[0])


def test_noise_is_float32_whatever_torch_prefers():
    here, there = at(TICKS, TICKS // 3)
    torch.set_default_dtype(torch.bfloat16)
    try:
        noise = Noise([1], (8,))
        made = noise.start(), noise(here, there)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(made[0], Noise([1], (8,)).start())
    assert torch.equal(made[1], Noise([1], (8,))(here, there))


def test_keys_are_not_confused():
    first = [torch.rand(1, generator=generator(*keys)).item() for keys in [(1, 23), (12, 3), (123,), (1, 2, 3)]]
    assert len(set(first)) == 4


WALKS = {
    "uniform": UniformTime()(Linear(), 9),
    "karras": Karras(0.02, 80)(PATHS["edm"], 12),
    "chain": Trailing()(PATHS["ddpm_zero_snr"], 11),
    "whole_chain": Leading()(PATHS["ddpm_linear"], 1000)[:40],
    "shorter_than_a_tick": points_at(Linear(), torch.linspace(0.5, 0.499, 41, dtype=torch.float64)),
    "odd_ticks": at(TICKS, TICKS - 1, 12345, 777, 776, 775, 2, 1, 0),
}


@pytest.mark.parametrize("walk", WALKS.values(), ids=WALKS)
def test_the_noise_of_steps_is_standard_normal_and_independent(walk):
    noise = Noise([3], (MANY,))
    z = torch.cat([noise.start(), *(noise(here, there) for here, there in pairwise(walk))]).double()
    bound = 5 / MANY**0.5  # five standard errors
    assert z.mean(1).abs().max() < bound
    assert (z.square().mean(1) - 1).abs().max() < bound * math.sqrt(2)
    assert (z.pow(4).mean(1) - 3).abs().max() < bound * math.sqrt(96)
    off = (z @ z.T / MANY).fill_diagonal_(0)
    assert off.abs().max() < bound


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_the_noise_of_a_long_step_is_the_sum_of_its_parts(path):
    fine, coarse, noise = UniformTime()(path, 64), UniformTime()(path, 8), Noise([1, 2], (50,))
    for place, (here, there) in enumerate(pairwise(coarse)):
        total = sum(
            noise(a, b) * math.sqrt(round(brownian_time(a) * TICKS) - round(brownian_time(b) * TICKS))
            for a, b in pairwise(fine[8 * place : 8 * place + 9])
        )
        whole = noise(here, there) * math.sqrt(round(brownian_time(here) * TICKS) - round(brownian_time(there) * TICKS))
        torch.testing.assert_close(total, whole, atol=1e-4, rtol=1e-4)


def test_noise_does_not_depend_on_what_was_drawn_before():
    walk = WALKS["karras"]
    steps = list(pairwise(walk))
    noise = Noise([4], (6,))
    down = [noise(*step) for step in steps]
    for place in torch.randperm(len(steps), generator=torch.Generator().manual_seed(0)).tolist():
        assert torch.equal(noise(*steps[place]), down[place])
        assert torch.equal(Noise([4], (6,))(*steps[place]), down[place])
        assert torch.equal(noise(*reversed(steps[place])), -down[place])


def test_seeds_and_forks_have_paths_of_their_own():
    here, there = at(TICKS, TICKS // 3)
    one = Noise([1, 2], (MANY,))
    others = [one, one.fork(0), one.fork(1), one.fork(0).fork(1), one.fork(1).fork(0)]
    z = torch.cat([noise(here, there) for noise in others])
    assert (torch.corrcoef(z) - torch.eye(len(z))).abs().max() < 0.03


def test_a_walk_draws_each_number_once_and_few_a_step(monkeypatch):
    drawn, plain = [], Noise._drawn
    monkeypatch.setattr(Noise, "_drawn", lambda noise, *keys: drawn.append(keys) or plain(noise, *keys))
    odd, even = UniformTime(0.9973)(Linear(), 64), UniformTime()(Linear(), 64)
    halves = [(a, b) for a, c in pairwise(odd) for b in (Linear().point((a.t + c.t) / 2), c)]
    # 14 levels, of which about the upper 6 are common; the ends of the last grid are in the upper 6 themselves
    for walk, most in ((list(pairwise(odd)), 9 * 64), (halves, 17 * 64), (list(pairwise(even)), 64)):
        drawn.clear()
        noise = Noise([0], (2,))
        for step in walk:
            noise(*step)
        assert len(drawn) == len(set(drawn)) <= most


SDE = {  # sampler, and its grid; every one converges to an SDE of its own
    "ddim_eta_1": partial(ddim, eta=1.0),
    "ddpm": ddpm,
    "euler_maruyama": euler_maruyama,
    "dpmpp_2s_sde": partial(dpmpp_2s, eta=1.0),
    "dpmpp_2m_sde": partial(dpmpp, eta=1.0, rule=midpoint),
    "dpmpp_3m_sde": partial(dpmpp, order=3, eta=1.0),
    "edm": partial(edm, churn=10.0, lowest=0.0, inflation=1.0),
}


@pytest.mark.parametrize("name", SDE)
def test_samples_of_few_and_of_many_steps_come_from_one_path(name, mixture):
    """The distance to a fine grid's samples falls with the steps; with noise that is new for each number of steps it
    does not."""

    def sampled(steps, seed):
        noise = Noise([seed], (1500, 2))
        points = UniformLogSNR(-4, 4)(Linear(), steps)
        x = points[0].std * Noise([1], (1500, 2)).start()[0].double()
        return SDE[name](mixture.denoise, x, points, lambda a, b: noise(a, b)[0].double())

    def distance(steps, seed=1):
        return (sampled(steps, seed) - finest).square().mean().sqrt()

    finest = sampled(512, 1)
    few, more, many = distance(8), distance(32), distance(128)
    fresh = [distance(steps, seed=2) for steps in (8, 32, 128)]
    assert many < 0.6 * more < 0.36 * few
    assert many < 0.2 * min(fresh)
    assert fresh[2] > 0.7 * fresh[0]


@pytest.mark.gpu
def test_noise_on_a_gpu_is_that_of_the_cpu_to_the_bit():
    here, noise = Noise([5, 6, 7], (4, 9, 9)), Noise([5, 6, 7], (4, 9, 9), "cuda")
    assert torch.equal(noise.start().cpu(), here.start())
    for step in pairwise(WALKS["karras"]):
        made = noise(*step)
        assert made.device.type == "cuda"
        assert torch.equal(made.cpu(), here(*step))
