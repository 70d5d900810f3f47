"""One row for each sampler; a new one adds its row here and gets every law tested."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

from dit.diffusion.noise import Noise
from dit.diffusion.path import Cosine, Linear
from dit.diffusion.prediction import Estimate
from dit.diffusion.sampler.ddim import ddim
from dit.diffusion.sampler.dpmpp_2m import dpmpp_2m
from dit.diffusion.sampler.heun import heun
from dit.diffusion.time import UniformLogSNR, UniformTime, points_at

from .conftest import PATHS

# name: (sampler, order and its tolerance, calls for n steps, deterministic)
SAMPLERS = {
    "ddim": (ddim, (1.0, 0.05), lambda n: n, True),
    "ddim_eta_1": (partial(ddim, eta=1.0), None, lambda n: n, False),
    "heun": (heun, (2.0, 0.1), lambda n: 2 * n - 1, True),
    "dpmpp_2m": (dpmpp_2m, (2.0, 0.1), lambda n: n, True),
}
DETERMINISTIC = [name for name, row in SAMPLERS.items() if row[3]]


def no_noise(draw):
    raise AssertionError("a deterministic sampler drew noise")


def walk(path, steps):
    """Uniform in log-SNR between two noise levels, without the last jump to zero noise."""
    log_snr = torch.linspace(-3.5, 3.0, steps + 1, dtype=torch.float64)
    return points_at(path, path.time(log_snr))


@pytest.mark.parametrize("name", [n for n, row in SAMPLERS.items() if row[1]])
@pytest.mark.parametrize("path", [Linear(), Cosine()], ids=["linear", "cosine"])
def test_order_of_convergence(name, path, mixture, start):
    sampler, (order, tolerance), *_ = SAMPLERS[name]
    exact = heun(mixture.denoise, start, walk(path, 4096), no_noise)
    errors = []
    for steps in (64, 256):
        made = sampler(mixture.denoise, start, walk(path, steps), no_noise)
        errors.append(float((made - exact).abs().max()))
    observed = np.log(errors[0] / errors[1]) / np.log(4)
    assert abs(observed - order) <= tolerance, f"{name} converges at order {observed:.2f}"


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("grid", [UniformTime(), UniformLogSNR()], ids=["time", "log_snr"])
def test_a_point_mass_is_sampled_exactly(name, path, grid, start):
    where = torch.tensor([0.3, -1.2], dtype=torch.float64)

    def denoise(x, point):
        return Estimate(x0=where.expand_as(x), eps=(x - point.alpha * where) / point.sigma)

    noise = Noise(range(64), (2,))
    made = SAMPLERS[name][0](denoise, start, grid(path, 7), lambda draw: noise(draw).double())
    torch.testing.assert_close(made, where.expand_as(made), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_calls_and_shapes(name, steps, mixture, start):
    sampler, _, calls, _ = SAMPLERS[name]
    made = sampler(mixture.denoise, start, UniformTime()(Linear(), steps), Noise(range(64), (2,)))
    assert made.shape == start.shape
    assert made.isfinite().all()
    assert mixture.calls == calls(steps)


def test_ddim_is_the_euler_method_of_rectified_flow(mixture, start):
    points = UniformTime()(Linear(), 20)
    x = start
    for here, there in pairwise(points):
        estimate = mixture.denoise(x, here)
        x = x + (there.t - here.t) * (estimate.eps - estimate.x0)
    torch.testing.assert_close(ddim(mixture.denoise, start, points, no_noise), x, atol=1e-12, rtol=0)


def test_ancestral_ddim_keeps_a_standard_normal_standard():
    """On N(0, I) data the marginal variance after every DDPM step (smaller variance) is at most 1 and near it."""

    def denoise(x, point):
        return Estimate(x0=point.alpha * x, eps=point.sigma * x)

    x = torch.randn(20_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = Noise([0], (20_000, 1))
    made = ddim(denoise, x, UniformTime()(PATHS["ddpm_linear"], 200), lambda d: noise(d)[0].double(), eta=1.0)
    assert 0.93 < made.var() < 1.02


def scheduler_outputs(scheduler, network, x):
    """diffusers' loop over one of its schedulers."""
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x).prev_sample
    return x


def eps_network(x, t):
    """Any smooth function will do: both sides see the same outputs."""
    return torch.tanh(x * (0.7 + 0.0003 * float(t)) + 0.1)


def ours_at(path, timesteps):
    """The points of discrete timesteps k, at t = (k + 1) / T, then clean."""
    return points_at(path, torch.tensor([(int(k) + 1) / 1000 for k in timesteps] + [0.0], dtype=torch.float64))


def denoiser_of(network):
    from dit.diffusion.prediction import Eps

    def denoise(x, point):
        return Eps().estimate(x, network(x, round(point.t * 1000) - 1), point)

    return denoise


def test_ddim_equals_diffusers():
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(
        beta_schedule="linear",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="leading",
        steps_offset=0,
    )
    theirs.set_timesteps(20)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    points = ours_at(PATHS["ddpm_linear"], theirs.timesteps)
    made = ddim(denoiser_of(eps_network), x, points, no_noise)
    torch.testing.assert_close(made, scheduler_outputs(theirs, eps_network, x), atol=1e-5, rtol=2e-6)


def test_dpmpp_2m_equals_diffusers():
    from diffusers import DPMSolverMultistepScheduler

    theirs = DPMSolverMultistepScheduler(
        beta_schedule="linear", algorithm_type="dpmsolver++", solver_order=2, lower_order_final=False,
        final_sigmas_type="zero", timestep_spacing="leading",
    )  # fmt: skip
    theirs.set_timesteps(20)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    points = ours_at(PATHS["ddpm_linear"], theirs.timesteps)
    made = dpmpp_2m(denoiser_of(eps_network), x, points, no_noise)
    torch.testing.assert_close(made, scheduler_outputs(theirs, eps_network, x), atol=1e-5, rtol=2e-6)


def test_euler_equals_diffusers_flow_matching():
    from diffusers import FlowMatchEulerDiscreteScheduler

    theirs = FlowMatchEulerDiscreteScheduler()
    theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / 20, 20))

    def velocity(x, t):
        return torch.tanh(x + 0.001 * float(t))

    def denoise(x, point):
        from dit.diffusion.prediction import Flow

        return Flow().estimate(x, velocity(x, 1000 * point.t), point)

    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    points = points_at(Linear(), theirs.sigmas.double())
    torch.testing.assert_close(
        ddim(denoise, x, points, no_noise), scheduler_outputs(theirs, velocity, x), atol=5e-6, rtol=2e-6
    )
