import pytest
import torch

from dit.diffusion.denoiser import Denoiser
from dit.diffusion.editing import Edit, Resampled, invert, outpaint, renoise
from dit.diffusion.noise import Noise
from dit.diffusion.path import Linear
from dit.diffusion.prediction import Estimate, Flow
from dit.diffusion.sampler.consistency import consistency
from dit.diffusion.sampler.ddim import ddim
from dit.diffusion.sampler.multistep import deis, dpmpp, unipc
from dit.diffusion.sampler.runge_kutta import heun, rk4
from dit.diffusion.sampler.singlestep import dpmpp_2s
from dit.diffusion.time import UniformLogSNR, UniformTime
from dit.types import Condition

from .conftest import PATHS
from .test_samplers import FROM_PURE_NOISE, SAMPLERS

SHAPE = (2, 1, 4, 4)
GIVEN = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
HALF = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
HALF[..., 2:] = 1  # the right half is made new


class Double(Noise):
    """In float64."""

    def _drawn(self, *keys):
        return super()._drawn(*keys).double()

    def fork(self, key):
        return Double(self.seeds, self.shape, self.device, (*self.forks, key))


draw = Double([4, 5], SHAPE[1:])


def flat(x, point):
    """A model of pictures that are all alike, of every pixel 1 +- 0.3."""
    gain = 0.09 * point.alpha / (0.09 * point.alpha**2 + point.sigma**2)
    return Estimate.of_x0(x, 1 + gain * (x - point.alpha), point)


@pytest.mark.parametrize(("strength", "walked"), [(0.0, 0), (0.25, 2), (0.5, 5), (1.0, 10)])
def test_strength_is_the_share_of_the_grid_that_is_walked(strength, walked):
    x, left = Edit(GIVEN, strength).start(UniformTime()(Linear(), 10), draw.start(), None)
    assert len(left) == walked + 1
    torch.testing.assert_close(x, left[0].alpha * GIVEN + left[0].sigma * draw.start())
    if strength == 0:
        torch.testing.assert_close(x, GIVEN)


def test_a_weaker_edit_stays_nearer_to_the_picture():
    made = []
    for strength in (0.2, 0.5, 0.9):
        x, left = Edit(GIVEN, strength).start(UniformTime()(Linear(), 20), draw.start(), None)
        made.append((ddim(flat, x, left, draw) - GIVEN).abs().mean())
    assert made == sorted(made)


@pytest.mark.parametrize("name", FROM_PURE_NOISE)
@pytest.mark.parametrize("path", ["linear", "vp", "edm", "ddpm_linear"])
def test_what_lies_outside_the_mask_is_kept_exactly_by_every_sampler(name, path):
    points = UniformTime()(PATHS[path], 12)
    edit = Edit(GIVEN, mask=HALF)
    x, left = edit.start(points, draw.start(), None)
    made = SAMPLERS[name][0](edit.keep(flat), x, left, draw)
    torch.testing.assert_close(made[..., :2], GIVEN[..., :2], atol=1e-10, rtol=0)
    assert (made[..., 2:] - GIVEN[..., 2:]).abs().max() > 0.1
    assert made.isfinite().all()


def test_on_the_way_the_known_region_is_as_noisy_as_the_path_says():
    edit, seen = Edit(GIVEN, mask=HALF), []

    def watched(x, point):
        seen.append((x, point))
        return flat(x, point)

    x, left = edit.start(UniformTime()(Linear(), 8), draw.start(), None)
    dpmpp(edit.keep(watched), x, left, draw)
    assert len(seen) == 8
    for x, point in seen:
        expected = point.alpha * GIVEN + point.sigma * draw.start()
        torch.testing.assert_close(x[..., :2], expected[..., :2], atol=1e-12, rtol=0)


def test_no_mask_changes_nothing():
    assert Edit(GIVEN).keep(flat) is flat


def test_outpainting_keeps_the_picture_in_its_place():
    edit = outpaint(GIVEN, (1, 2, 3, 0))
    assert edit.x0.shape == (2, 1, 6, 8)
    assert edit.mask.sum() == 2 * (6 * 8 - 4 * 4)
    z = Double([4, 5], (1, 6, 8))
    x, left = edit.start(UniformTime()(Linear(), 10), z.start(), None)
    made = ddim(edit.keep(flat), x, left, z)
    torch.testing.assert_close(made[:, :, 2:6, 1:5], GIVEN, atol=1e-10, rtol=0)


@pytest.mark.parametrize("path", ["linear", "vp", "edm"])
def test_renoising_has_the_moments_of_the_path(path):
    here, there = PATHS[path].point(0.3), PATHS[path].point(0.6)
    z = torch.randn(2, 100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x0 = torch.full((100_000,), 0.7, dtype=torch.float64)
    x = renoise(here.alpha * x0 + here.sigma * z[0], here, there, z[1])
    assert x.mean() == pytest.approx(there.alpha * 0.7, abs=0.02 * there.sigma)
    assert x.std() == pytest.approx(there.sigma, rel=0.01)


@pytest.mark.parametrize(("times", "stretch"), [(1, 1), (3, 1), (2, 4)])
def test_resampling_walks_each_stretch_so_often(times, stretch):
    calls, keys = [], []

    def counted(x, point):
        calls.append(point.t)
        return flat(x, point)

    class Noted(Noise):
        def __call__(self, here, there):
            keys.append((self.forks, here.t, there.t))
            return super().__call__(here, there)

        def fork(self, key):
            return Noted(self.seeds, self.shape, self.device, (*self.forks, key))

    points = UniformTime()(Linear(), 8)
    made = Resampled(dpmpp_2s_sde, times, stretch)(counted, draw.start(), points, Noted([4, 5], SHAPE[1:]))
    assert made.isfinite().all()
    assert len(calls) == times * sum(2 * (b - a) for a, b in stretches(8, stretch)) - times - first_steps(times)
    assert len(keys) == len(set(keys))  # no draw serves twice
    assert len({forks for forks, *_ in keys}) == 2 * times - 1  # every way down and up has a path of its own


def dpmpp_2s_sde(denoise, x, points, noise):
    return dpmpp_2s(denoise, x, points, noise, eta=1.0)


def stretches(n, stretch):
    return [(a, min(a + stretch, n)) for a in range(0, n, stretch)]


def first_steps(times):
    """From pure noise 2S takes one call instead of two; so does the step to no noise."""
    return times


def test_once_each_is_the_sampler_itself_for_one_without_memory():
    points = UniformTime()(Linear(), 8)
    torch.testing.assert_close(
        Resampled(ddim, 1, 1)(flat, draw.start(), points, draw), ddim(flat, draw.start(), points, draw)
    )


def test_resampling_makes_the_new_region_agree_with_the_kept_one():
    """Pictures of one grey level, so far unknown: the right half should take the level of the left."""

    def one_level(x, point):
        gain = point.alpha / (point.alpha**2 + point.sigma**2 / 16)
        return Estimate.of_x0(x, (gain * x.mean((1, 2, 3), keepdim=True)).expand_as(x), point)

    edit, errors = Edit(torch.ones(SHAPE, dtype=torch.float64), mask=HALF), []
    for times in (1, 8):
        x, left = edit.start(UniformTime(0.99)(PATHS["vp"], 20), draw.start(), None)
        made = Resampled(lambda *a: ddim(*a, eta=1.0), times, 1)(edit.keep(one_level), x, left, draw)
        errors.append((made[..., 2:] - 1).abs().mean())
    assert errors[1] < errors[0]


@pytest.mark.parametrize(
    ("sampler", "steps", "within"), [(heun, 50, 1e-3), (rk4, 50, 1e-5), (ddim, 400, 0.1), (dpmpp, 100, 0.01)]
)
def test_inversion_and_back_is_the_picture(sampler, steps, within, mixture, start):
    points = UniformLogSNR(-3, 3)(Linear(), steps + 1)
    noise, down = invert(mixture.denoise, 0.7 * start, points, sampler)
    assert noise.std() > 0.8
    back = sampler(mixture.denoise, noise, down[:-1], draw)
    assert (back / down[-2].alpha - 0.7 * start).abs().max() < within


@pytest.mark.parametrize("sampler", [heun, ddim, dpmpp, deis, unipc])
def test_the_default_grid_is_inverted_from_its_first_point_with_signal(sampler, mixture, start):
    noise, down = invert(mixture.denoise, start, UniformTime()(Linear(), 50), sampler)
    assert noise.isfinite().all()
    assert down[0].t == pytest.approx(0.98)
    with pytest.raises(ValueError, match="take more steps"):
        invert(mixture.denoise, start, UniformTime()(Linear(), 1), sampler)


def test_an_edit_with_a_source_starts_at_the_pictures_own_noise():
    """Walked down with the same text it gives the picture again, whatever the seed."""
    text = Condition(label=torch.zeros(1))

    def network(x, time, condition):
        estimate = flat(x, Linear().point(float(time[0]) / 1000))
        return estimate.eps - estimate.x0

    denoiser = Denoiser(network, Linear(), Flow())
    edit = Edit(GIVEN[:1], source=text)
    walk = UniformTime()(Linear(), 40)
    for seed in (0, 1):
        x, down = edit.start(walk, Double([seed, 5], SHAPE[1:]).start(), denoiser)
        made = heun(lambda x, p: denoiser(x, p, text.expand(2)), x, down, draw)
        torch.testing.assert_close(made, GIVEN[:1].expand_as(made), atol=0.05, rtol=0)


def test_inversion_refuses_a_sampler_that_draws():
    with pytest.raises(ValueError, match="draws no noise"):
        invert(flat, GIVEN, UniformTime()(Linear(), 5), consistency)


@pytest.mark.parametrize(("make", "fault"), [
    (lambda: Edit(GIVEN, 1.2), "strength=1.2"), (lambda: Edit(GIVEN, -0.1), "strength=-0.1"),
    (lambda: Edit(GIVEN, mask=torch.ones(1, 1, 4, 5)), r"mask of shape \(1, 1, 4, 5\)"),
    (lambda: Edit(GIVEN, mask=torch.ones(4, 4)), r"mask of shape \(4, 4\)"),
    (lambda: outpaint(GIVEN, (-1, 0, 0, 0)), "cannot add -1"), (lambda: Edit(GIVEN).start([], torch.zeros(3, 1, 4, 4), None), "3 samples cannot start from 2"), (lambda: Resampled(ddim, 0), "times=0"),
])  # fmt: skip
def test_bad_edits_are_refused(make, fault):
    with pytest.raises(ValueError, match=fault):
        make()
