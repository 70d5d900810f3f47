"""The same network outputs through diffusers' schedulers and through our samplers, in float32.

Ours differs from itself in float64 by 1e-6 (UniPC-3: 6e-6); the tolerances are for what diffusers rounds in its coefficients."""

from functools import partial

import numpy as np
import pytest
import torch

from dit.diffusion.path import Linear, VarianceExploding
from dit.diffusion.prediction import Eps, Flow, LearnedRange, timestep
from dit.diffusion.sampler.ddim import ddim
from dit.diffusion.sampler.ddpm import ddpm
from dit.diffusion.sampler.multistep import deis, dpmpp, halved, midpoint, unipc
from dit.diffusion.sampler.runge_kutta import heun
from dit.diffusion.time import Leading, Linspace, Respaced, Trailing, points_at

from .conftest import PATHS

PATH = PATHS["ddpm_linear"]
SHAPE = (4, 3, 8, 8)
DRAWS = torch.randn(80, *SHAPE, generator=torch.Generator().manual_seed(2))
START = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
LINEAR = {"beta_schedule": "linear", "num_train_timesteps": 1000}
EPS = Eps(c_noise=timestep)
DPM = {"use_karras_sigmas": False, "timestep_spacing": "linspace", **LINEAR}


def network(x, t, channels=1):
    """The noise left by a made-up x0, so that x stays about 3: both sides see the same outputs."""
    point = PATH.point((float(t) + 1) / 1000)
    y = (x - point.alpha * torch.tanh(x)) / (point.sigma + 0.2)
    return torch.cat([y, torch.sin(3 * x)], dim=1) if channels == 2 else y


def denoise(x, point, prediction=EPS):
    y = prediction.call_network(lambda x, t, _: network(x, t[0], prediction.outputs), x, point, None)
    return prediction.estimate(x, y, point)


def theirs(scheduler, steps, x=START, channels=1, monkeypatch=None, **more):
    """diffusers' loop over one of its schedulers, fed with our noise."""
    if monkeypatch is not None:
        module = __import__(type(scheduler).__module__, fromlist=["x"])
        draws = iter(DRAWS[1:])
        monkeypatch.setattr(module, "randn_tensor", lambda *a, **k: next(draws).clone())
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(scaled, t, channels), t, x, **more).prev_sample
    return x


def noise():
    """Our draws, in the order in which diffusers takes them."""
    draws = iter(DRAWS[1:])
    return lambda here, there: next(draws)


def close(ours, other, atol):
    assert other.isfinite().all()
    torch.testing.assert_close(ours, other, atol=atol, rtol=1e-6)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("grid", "spacing"), [(Leading(), "leading"), (Trailing(), "trailing")])
def test_ddim(eta, grid, spacing, monkeypatch):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=True, timestep_spacing=spacing, **LINEAR)
    other = theirs(scheduler, 20, monkeypatch=monkeypatch, eta=eta)
    close(ddim(denoise, START, grid(PATH, 20), noise(), eta=eta), other, 6e-6)


def test_diffusers_ddim_does_not_step_to_the_next_of_its_own_trailing_grid():
    """Pitfall: it steps to t - T // n, which is another index where n does not divide T."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing", **LINEAR)
    other = theirs(scheduler, 15)
    assert (ddim(denoise, START, Trailing()(PATH, 15), noise()) - other).abs().max() > 1e-3
    x = START
    for here in Trailing()(PATH, 15)[:-1]:  # the same as theirs, when sent where theirs goes
        x = ddim(denoise, x, [here, PATH.point(max(here.t - (1000 // 15) / 1000, 0.0))], noise())
    close(x, other, 4e-6)


@pytest.mark.parametrize(
    ("variance", "name"), [("small", "fixed_small"), ("large", "fixed_large"), ("learned", "learned_range")]
)
def test_ddpm(variance, name, monkeypatch):
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(variance_type=name, clip_sample=False, timestep_spacing="leading", **LINEAR)
    other = theirs(scheduler, 50, channels=1 + (variance == "learned"), monkeypatch=monkeypatch)
    model = partial(denoise, prediction=LearnedRange(Eps(c_noise=timestep))) if variance == "learned" else denoise
    close(ddpm(model, START, Leading()(PATH, 50), noise(), variance=variance), other, 1e-5)


@pytest.mark.parametrize(("order", "rule"), [(1, midpoint), (2, midpoint), (3, halved)])
def test_dpm_solver_multistep(order, rule):
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        solver_order=order, lower_order_final=False, final_sigmas_type="zero", **DPM
    )
    other = theirs(scheduler, 20)
    close(dpmpp(denoise, START, Linspace()(PATH, 20), noise(), order=order, rule=rule), other, 4e-6)


@pytest.mark.parametrize("order", [1, 2])
def test_sde_dpm_solver_multistep(order, monkeypatch):
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        solver_order=order, lower_order_final=False, final_sigmas_type="zero", algorithm_type="sde-dpmsolver++", **DPM
    )
    other = theirs(scheduler, 20, monkeypatch=monkeypatch)
    close(dpmpp(denoise, START, Linspace()(PATH, 20), noise(), order=order, eta=1.0, rule=midpoint), other, 3e-6)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(order):
    """Pitfall: the corrector moves x, so eps must follow from the moved x; ours uses x0 and x alone."""
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(
        solver_order=order, solver_type="bh2", lower_order_final=False, final_sigmas_type="sigma_min", **DPM
    )
    other = theirs(scheduler, 20)
    lowest = PATH.point(1 / 1000)
    points = [*Linspace()(PATH, 20)[:-1], lowest]
    close(unipc(denoise, START, points, noise(), order=order), other, {1: 4e-6, 2: 6e-6, 3: 3e-5}[order])


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(order):
    from diffusers import DEISMultistepScheduler

    scheduler = DEISMultistepScheduler(solver_order=order, lower_order_final=False, **DPM)
    other = theirs(scheduler, 20)
    points = [*Linspace()(PATH, 20)[:-1], PATH.point(1 / 1000)]
    made = deis(denoise, START, points, noise(), order=order)
    close(made, other, 1.5e-5)


def exploding(scheduler):
    """Pitfall: Euler's and Heun's state is x / alpha, and starts at sigma_max in those terms (init_noise_sigma)."""
    sigmas = scheduler.sigmas.double().unique(sorted=True).flip(0)
    return points_at(VarianceExploding(1.0), sigmas)


def exploding_denoise(scheduler):
    sigmas, times = scheduler.sigmas[:-1].double(), scheduler.timesteps

    def denoise(x, point):
        t = times[int((sigmas - point.sigma).abs().argmin())]
        return Eps().estimate(x, network(x / (point.sigma**2 + 1) ** 0.5, t), point)

    return denoise


@pytest.mark.parametrize(("name", "sampler"), [
    ("EulerDiscreteScheduler", ddim), ("EulerAncestralDiscreteScheduler", partial(ddim, eta=1.0)),
    ("HeunDiscreteScheduler", partial(heun, frame="sigma")),
])  # fmt: skip
def test_samplers_of_the_exploding_frame(name, sampler, monkeypatch):
    import diffusers

    scheduler = getattr(diffusers, name)(timestep_spacing="linspace", **LINEAR)
    scheduler.set_timesteps(20)
    x = START * scheduler.sigmas[0]
    other = theirs(scheduler, 20, x, monkeypatch=monkeypatch if "Ancestral" in name else None)
    close(sampler(exploding_denoise(scheduler), x, exploding(scheduler), noise()), other, 3.5e-6)


def test_flow_matching_euler():
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 20, 20))

    def velocity(x, t):
        return (x - torch.tanh(x)) / (float(t) / 1000 + 0.2)

    other = START
    for t in scheduler.timesteps:
        other = scheduler.step(velocity(other, t), t, other).prev_sample

    def model(x, point):
        return Flow().estimate(x, velocity(x, 1000 * point.t), point)

    close(ddim(model, START, points_at(Linear(), scheduler.sigmas.double()), noise()), other, 2e-6)


def test_respaced_ddpm_is_the_respaced_chain_itself():
    """Walking 50 of 1000 indices is the same as a chain of 50 betas made from them."""
    from dit.diffusion.path import DiscreteBetas

    kept = Respaced().indices(50)[::-1].astype(int)
    alpha_bar = PATH.alphas[1:][kept] ** 2
    betas = 1 - alpha_bar / torch.cat([torch.ones(1), alpha_bar[:-1]])
    short = DiscreteBetas(betas)
    points = points_at(short, torch.arange(50, -1, -1, dtype=torch.float64) / 50)

    def model(x, point):
        place = round(point.t * 50) - 1
        return Eps().estimate(x, network(x, kept[place]), point)

    close(ddpm(model, START, points, noise()), ddpm(denoise, START, Respaced()(PATH, 50), noise()), 1e-5)
