"""One row for each sampler. A new one in conf/sampler gets the laws of stochastic samplers of one call a step without a
row; a row says its order and its calls."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from dit.diffusion.denoiser import Denoiser
from dit.diffusion.editing import Edit
from dit.diffusion.guidance import AdaptiveProjected, ClassifierFree, Interval, Rescaled
from dit.diffusion.noise import Noise
from dit.diffusion.path import Linear, ancestral_stds, exp_minus_h
from dit.diffusion.prediction import EDM, X0, Eps, Estimate, Flow, LearnedRange, Score, V, timestep
from dit.diffusion.sampler.adaptive import Dopri5
from dit.diffusion.sampler.consistency import consistency
from dit.diffusion.sampler.ddim import ddim
from dit.diffusion.sampler.ddpm import ddpm
from dit.diffusion.sampler.multistep import deis, dpmpp, exact, halved, midpoint, moments, unipc
from dit.diffusion.sampler.runge_kutta import heun, rk4, runge_kutta
from dit.diffusion.sampler.singlestep import dpmpp_2s
from dit.diffusion.sampler.stochastic import constant, decreasing, edm, euler_maruyama, linear, score_based
from dit.diffusion.time import Karras, UniformLogSNR, UniformTime, points_at
from dit.types import Condition

from ..parts import found, full_name
from ..waiting import Waiting, no_waiting_on_cuda
from .conftest import PATHS

once, twice = lambda n: n, lambda n: 2 * n - 1
# name: (sampler, least and greatest order observed, calls for n steps from where signal is left), None for the stochastic
SAMPLERS = {
    "ddim": (ddim, (0.95, 1.05), once),
    "heun": (heun, (1.9, 2.1), twice),
    "heun_sigma": (partial(heun, frame="sigma"), (1.9, 2.1), twice),
    "heun_log_snr": (partial(heun, frame="log_snr"), (1.9, 2.1), twice),
    "rk4": (rk4, (3.9, 4.1), lambda n: 4 * n - 3),
    "dpmpp_1": (partial(dpmpp, order=1), (0.95, 1.05), once),
    "dpmpp_2s": (dpmpp_2s, (1.9, 2.1), twice),
    "dpmpp_2m": (partial(dpmpp, rule=midpoint), (1.9, 2.1), once),
    "dpmpp_2m_exact": (dpmpp, (1.9, 2.1), once),
    "dpmpp_3m": (partial(dpmpp, order=3), (2.3, 3.3), once),
    "dpmpp_3m_halved": (partial(dpmpp, order=3, rule=halved), (1.9, 2.1), once),
    "unipc_1": (partial(unipc, order=1), (1.9, 2.1), once),
    "unipc_2": (unipc, (2.9, 3.15), once),
    "unipc_3": (partial(unipc, order=3), (3.7, 4.1), once),
    "deis_1": (partial(deis, order=1), (0.95, 1.05), once),
    "deis_2": (deis, (1.9, 2.1), once),
    "deis_3": (partial(deis, order=3), (2.9, 3.1), once),
    "edm": (partial(edm, churn=0.0), (1.9, 2.1), twice),
    "ddim_eta_1": (partial(ddim, eta=1.0), None, once),
    "ddpm": (ddpm, None, once),
    "ddpm_large": (partial(ddpm, variance="large"), None, once),
    "dpmpp_2s_sde": (partial(dpmpp_2s, eta=1.0), None, twice),
    "dpmpp_2m_sde": (partial(dpmpp, eta=1.0, rule=midpoint), None, once),
    "dpmpp_3m_sde": (partial(dpmpp, order=3, eta=1.0), None, once),
    "edm_churn": (edm, None, twice),
    "euler_maruyama": (euler_maruyama, None, once),
    "euler_maruyama_constant": (partial(euler_maruyama, diffusion=constant), None, once),
    "euler_maruyama_linear": (partial(euler_maruyama, diffusion=linear), None, once),
    "euler_maruyama_decreasing": (partial(euler_maruyama, diffusion=decreasing), None, once),
    "euler_maruyama_score_based": (partial(euler_maruyama, diffusion=score_based), None, once),
    "consistency": (consistency, None, once),
}
ELSEWHERE = {
    "dit.diffusion.sampler.flow_map.flow_map",
    "dit.diffusion.sampler.ancestral.ancestral",
    full_name(Dopri5()),
}
ELSEWHERE |= {f"dit.diffusion.sampler.runge_kutta.{name}" for name in ("heun", "rk4")}  # rows above, as partials
TESTED = {full_name(row[0]) for row in SAMPLERS.values()} | ELSEWHERE
SAMPLERS |= {name: (instantiate(node), None, once) for name, node in found("sampler", TESTED).items()}
DETERMINISTIC = [name for name, row in SAMPLERS.items() if row[1]]
FROM_PURE_NOISE = [n for n in SAMPLERS if n not in ("heun_sigma", "heun_log_snr", "euler_maruyama_score_based")]


def no_noise(here, there):
    raise AssertionError("a deterministic sampler drew noise")


def walk(path, steps):
    """Uniform in log-SNR between two noise levels, without the last jump to zero noise."""
    log_snr = torch.linspace(-3.5, 3.0, steps + 1, dtype=torch.float64)
    return points_at(path, path.time(log_snr))


def errors(sampler, path, mixture, start, steps=(64, 256)):
    exact_end = rk4(mixture.denoise, start, walk(path, 512), no_noise)
    return [float((sampler(mixture.denoise, start, walk(path, n), no_noise) - exact_end).abs().max()) for n in steps]


def order(sampler, path, mixture, start):
    coarse, fine = errors(sampler, path, mixture, start)
    return np.log(coarse / fine) / np.log(4)


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("path", ["linear", "trigonometric", "vp", "edm", "ddpm_linear"])
def test_order_of_convergence(name, path, mixture, start):
    sampler, (least, greatest), _ = SAMPLERS[name]
    if path == "ddpm_linear" and greatest > 2.1:
        pytest.skip("a chain's velocity has a first derivative and no more: no method is of third order on it")
    start = PATHS[path].point(float(PATHS[path].time(torch.tensor(-3.5)))).sigma * start
    assert least <= order(sampler, PATHS[path], mixture, start) <= greatest


def test_the_exact_third_order_beats_the_halved(mixture, start):
    exact_error, halved_error = (
        errors(partial(dpmpp, order=3, rule=rule), Linear(), mixture, start, [512])[0] for rule in (exact, halved)
    )
    assert exact_error < halved_error / 10


def test_dopri5_reaches_its_tolerance_and_never_asks_beyond_the_end(mixture, start):
    points, asked = walk(Linear(), 2), []

    def denoise(x, point):
        asked.append(point.t)
        return mixture.denoise(x, point)

    steady = rk4(mixture.denoise, start[:1], [*walk(Linear(), 512)], no_noise)
    for tolerance, least in ((1e-3, 0), (1e-8, 60)):
        asked.clear()
        made = Dopri5(tolerance, tolerance)(denoise, start[:1], points, no_noise)
        assert (made - steady).abs().max() < 30 * tolerance
        assert len(asked) > least
        assert min(asked) >= points[-1].t - 1e-9
        assert max(asked) <= points[0].t + 1e-9
    # to the very end it jumps from sigma_min, whatever the number of steps
    whole = [Dopri5()(mixture.denoise, start[:1], UniformTime()(Linear(), n), no_noise) for n in (1, 9)]
    torch.testing.assert_close(*whole)
    with pytest.raises(ValueError, match="needs a batch of 1"):
        Dopri5()(mixture.denoise, start, points, no_noise)


@pytest.mark.parametrize("name", [*FROM_PURE_NOISE, "dopri5"])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("grid", [UniformTime(), UniformLogSNR(-2.6, 3.4)], ids=["time", "log_snr"])
def test_a_point_mass_is_sampled_exactly(name, path, grid, start):
    where = torch.tensor([0.3, -1.2], dtype=torch.float64)

    def denoise(x, point):
        return Estimate(x0=where.expand_as(x), eps=(x - point.alpha * where) / point.sigma)

    noise = Noise(range(64), (2,))
    draw = lambda a, b: noise(a, b).double()  # noqa: E731
    points = grid(path, 7)
    if name == "dopri5":
        made = Dopri5()(denoise, start[:1], points, draw)
    else:
        made = SAMPLERS[name][0](denoise, points[0].alpha * where + points[0].sigma * start, points, draw)
    torch.testing.assert_close(made, where.expand_as(made), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_calls_and_shapes(name, steps, mixture, start):
    sampler, _, calls = SAMPLERS[name]
    made = sampler(mixture.denoise, start, UniformTime(0.99)(Linear(), steps), Noise(range(64), (2,)))
    assert made.shape == start.shape
    assert made.isfinite().all()
    assert mixture.calls == calls(steps)


@pytest.mark.parametrize("name", [n for n, row in SAMPLERS.items() if not row[1] and n != "consistency"])
@pytest.mark.parametrize("path", ["linear", "vp"])
def test_a_stochastic_sampler_has_the_mixture_s_moments(name, path, mixture):
    """Weakly convergent: with many steps the samples have the data's mean and covariance."""
    x = torch.randn(4000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    noise = Noise([7], (4000, 2))
    points = UniformLogSNR(-5, 5)(PATHS[path], 100) if "score" in name else UniformLogSNR(-4.5, 5)(PATHS[path], 100)
    made = SAMPLERS[name][0](mixture.denoise, points[0].sigma * x, points, lambda a, b: noise(a, b)[0].double())
    mean = (mixture.weights[:, None] * mixture.means).sum(0)
    spread = mixture.weights[:, None] * ((mixture.means - mean) ** 2 + mixture.stds[:, None] ** 2)
    torch.testing.assert_close(made.mean(0), mean, atol=0.08, rtol=0)
    torch.testing.assert_close(made.var(0), spread.sum(0), atol=0.12, rtol=0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_loop_never_waits_for_the_device(name):
    """On the meta device tensors have no values: reading one, as .item() does, would raise. So with the denoiser, every
    guidance and an inpainting mask around the sampler. The one copy is that of a step's noise."""
    x, points = torch.empty(2, 3, 4, 4, device="meta"), UniformTime(0.99)(Linear(), 6)
    text = Condition(label=torch.empty(2, dtype=torch.long, device="meta"))
    denoiser = Denoiser(lambda x, time, condition: torch.cat([x, x], 1), Linear(), LearnedRange(Flow()))
    edit = Edit(torch.empty(1, 3, 4, 4, device="meta"), mask=torch.empty(1, 1, 4, 4, device="meta"))
    for guidance in (ClassifierFree(2.0), ClassifierFree(2.0, 2), Interval(2.0), Rescaled(2.0), AdaptiveProjected(2.0)):
        denoise = edit.keep(guidance(denoiser, text, text[:1]))
        noise, drawn = Noise([1, 2], (3, 4, 4), "meta"), []
        with Waiting() as waiting:
            made = SAMPLERS[name][0](denoise, x, points, lambda *step: drawn.append(step) or noise(*step))  # noqa: B023
        assert made.shape == x.shape
        assert len(waiting.copies) == len(drawn)
        assert not waiting.reads + waiting.made


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_state_stays_float32_and_close_to_float64(name, mixture, start):
    """Pitfall: a state in bf16 costs 0.08 to 0.14 over 50 steps."""
    points = UniformTime(0.99)(Linear(), 50)
    noise = Noise(range(64), (2,))
    single = SAMPLERS[name][0](lambda x, p: rounded(mixture, x, p), start.float(), points, noise)
    double = SAMPLERS[name][0](mixture.denoise, start, points, lambda a, b: noise(a, b).double())
    assert single.dtype == torch.float32
    assert (single - double).abs().max() < 2e-4


def rounded(mixture, x, point):
    assert x.dtype == torch.float32
    estimate = mixture.denoise(x.double(), point)
    return Estimate(estimate.x0.float(), estimate.eps.float())


def test_ddim_is_the_euler_method_of_rectified_flow(mixture, start):
    points = UniformTime()(Linear(), 20)
    x = start
    for here, there in pairwise(points):
        estimate = mixture.denoise(x, here)
        x = x + (there.t - here.t) * (estimate.eps - estimate.x0)
    torch.testing.assert_close(ddim(mixture.denoise, start, points, no_noise), x, atol=1e-12, rtol=0)


def test_a_step_of_first_order_is_ddim_in_every_family(mixture, start):
    """Euler in sigma / alpha, DPM-Solver++ 1, DEIS 1 and the EDM sampler's step to the end are the same formula."""
    points, euler = UniformTime(0.99)(PATHS["vp"], 10), ([(0.0, [])], [1.0])
    expected = ddim(mixture.denoise, start, points, no_noise)
    for sampler in (
        partial(dpmpp, order=1), partial(deis, order=1), partial(runge_kutta, tableau=euler, frame="sigma"),
    ):  # fmt: skip
        torch.testing.assert_close(sampler(mixture.denoise, start, points, no_noise), expected, atol=1e-11, rtol=0)
    one = points[-2:]
    torch.testing.assert_close(
        edm(mixture.denoise, start, one, no_noise, 0.0), ddim(mixture.denoise, start, one, no_noise)
    )


def test_ancestral_samplers_agree(mixture, start):
    """DDIM with eta 1, DDPM with the small variance and first-order SDE-DPM-Solver++ are one sampler."""
    points, noise = UniformTime(0.99)(PATHS["vp"], 10), Noise(range(64), (2,))
    draw = lambda a, b: noise(a, b).double()  # noqa: E731
    expected = ddim(mixture.denoise, start, points, draw, eta=1.0)
    for sampler in (ddpm, partial(dpmpp, order=1, eta=1.0)):
        torch.testing.assert_close(sampler(mixture.denoise, start, points, draw), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("path", ["vp", "ddpm_linear", "trigonometric"])
def test_ddpm_large_keeps_a_standard_normal_exactly_standard(path):
    """On N(0, I) data a step multiplies x by a number and adds noise: the marginal variance stays exactly 1."""
    one, variance = torch.ones(1, dtype=torch.float64), 1.0
    for here, there in pairwise(UniformTime()(PATHS[path], 50)[1:-1]):
        step = partial(ddpm, lambda x, p: Estimate(p.alpha * x, p.sigma * x), points=[here, there], variance="large")
        gain, added = step(x=one, noise=lambda a, b: 0 * one), step(x=0 * one, noise=lambda a, b: one)
        variance = float(gain) ** 2 * variance + float(added) ** 2
        assert variance == pytest.approx(1, abs=1e-12)


def test_learned_variance_lies_between_the_fixed_ones(start):
    path = PATHS["ddpm_linear"]
    here, there = path.point(0.5), path.point(0.4)
    small, large = ancestral_stds(here, there)

    def step(spread):
        def denoise(x, point):
            return Estimate(0 * x, 0 * x, None if spread is None else torch.full_like(x, spread))

        return float(ddpm(denoise, start[:1], [here, there], lambda a, b: torch.ones(1, 2), variance="learned")[0, 0])

    assert step(-1.0) == pytest.approx(small)
    assert step(1.0) == pytest.approx(large)
    assert step(0.0) == pytest.approx((small * large) ** 0.5)
    with pytest.raises(ValueError, match="eps_learned_range"):
        step(None)


PREDICTIONS = {"x0": X0(), "eps": Eps(), "v": V(), "flow": Flow(), "score": Score(), "edm": EDM(0.7)}


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["ddim", "ddpm", "heun", "dpmpp_2m", "unipc_2", "deis_3", "edm_churn", "consistency"])
def test_any_prediction_works_with_any_path_and_any_sampler(name, path, prediction):
    """A network that knows the one picture there is, asked in its own terms, from the path's end or near it."""
    path, prediction = PATHS[path], PREDICTIONS[prediction]
    where = torch.tensor([0.3, -1.2, 0.5]).double().view(1, 3, 1, 1)
    points = UniformTime(0.98 if isinstance(prediction, (Eps, Score, EDM)) else 1.0)(path, 9)
    place = {float(prediction.c_noise(p)): p for p in points[:-1]} | {}

    def network(x, time, condition):
        point = place.get(float(time[0])) or min(points[:-1], key=lambda p: abs(prediction.c_noise(p) - float(time[0])))
        x = x / prediction.input_scale(point)
        return prediction.target(where.expand_as(x), (x - point.alpha * where) / point.sigma, point)

    denoiser = Denoiser(network, path, prediction)
    noise = Noise(range(4), (3, 1, 1))
    start = points[0].alpha * where + points[0].sigma * noise.start().double()
    sampler = partial(edm, churn=0.0) if name == "edm_churn" else SAMPLERS[name][0]
    condition = Condition(label=torch.zeros(4))  # to which `consistency` adds the end of its jump
    made = sampler(lambda x, p: denoiser(x, p, condition), start, points, lambda a, b: noise(a, b).double())
    torch.testing.assert_close(made, where.expand_as(made), atol=1e-7, rtol=0)


@pytest.mark.parametrize("grid", [Karras(0.02, 20), UniformLogSNR(-3, 3), UniformTime(0.5), UniformTime()])
@pytest.mark.parametrize("path", ["linear", "vp", "edm"])
def test_a_walk_may_start_anywhere(grid, path):
    """From noise of the size that x has there, data of unit variance comes out with unit variance."""
    if path == "edm" and isinstance(grid, UniformTime):
        pytest.skip("steps of equal sigma are too coarse where it is small")
    points = grid(PATHS[path], 60)

    def normal(x, point):
        return Estimate.of_x0(x, point.alpha * x / point.std**2, point)

    z = torch.randn(20_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert dpmpp(normal, points[0].std * z, points, no_noise).std() == pytest.approx(1, abs=0.02)


def test_the_network_s_time_is_that_of_the_point_on_a_karras_grid():
    """Pitfall: diffusers rounds the network's timestep to an index, but not the sigma it goes with."""
    path = PATHS["ddpm_linear"]
    points = Karras(0.02, 100)(path, 12)[:-1]
    times = [timestep(p) for p in points]
    assert any(abs(t - round(t)) > 0.1 for t in times)
    for t, point in zip(times, points, strict=True):
        assert path.point((t + 1) / 1000).sigma == pytest.approx(point.sigma, rel=1e-9)


def test_shrink_keeps_its_digits():
    """e^-h as a quotient, where the difference of two logarithms would have lost half of the digits of 1 - e^-h."""
    here, there = (Linear().point(t) for t in (0.5, 0.5 - 1e-9))
    assert 1 - exp_minus_h(here, there) == pytest.approx(4e-9, rel=1e-6)


@pytest.mark.parametrize("z", [1e-6, 1e-2, 0.9, 1.1, 7.0, -1e-6, -0.5, -3.0])
def test_moments_of_the_exponential_weight(z):
    r = np.linspace(0, 1, 200_001)
    for k, value in enumerate(moments(z, 4)):
        assert value == pytest.approx(np.trapezoid(z * np.exp(-z * (1 - r)) * r**k, r), rel=1e-8)


@pytest.mark.parametrize("nodes", [[0.0], [0.0, -0.7], [0.0, -0.7, -1.9], [-0.7, 0.0, 1.0]])
def test_exact_weights_integrate_their_polynomials(nodes):
    z, r = 0.8, np.linspace(0, 1, 200_001)
    weights = exact(nodes, z)
    for k in range(len(nodes)):
        integral = np.trapezoid(z * np.exp(-z * (1 - r)) * r**k, r)
        assert (weights * np.array(nodes) ** k).sum() == pytest.approx(integral, rel=1e-8)


@pytest.mark.parametrize(("sampler", "path", "start_at", "fault"), [
    (partial(heun, frame="sigma"), "linear", 1.0, "frame=sigma cannot start at t=1"),
    (partial(heun, frame="x"), "linear", 1.0, "frame='x' is not one of t, sigma, log_snr"),
    (partial(euler_maruyama, diffusion=score_based), "linear", 1.0, "infinite at t=1"),
    (partial(ddpm, variance="big"), "linear", 1.0, "variance='big'"),
    (partial(dpmpp, order=4), "linear", 1.0, "order=4"), (partial(dpmpp, eta=-1), "linear", 1.0, "eta=-1"),
    (partial(ddim, eta=7), "linear", 1.0, "eta=7"), (partial(dpmpp_2s, eta=-1), "linear", 1.0, "eta=-1"),
    (partial(edm, churn=-1), "linear", 1.0, "churn=-1"), (partial(edm, lowest=2, highest=1), "linear", 1.0, "lowest=2"),
])  # fmt: skip
def test_what_a_sampler_cannot_serve_is_refused(sampler, path, start_at, fault, mixture, start):
    with pytest.raises(ValueError, match=fault):
        sampler(mixture.denoise, start, UniformTime(start_at)(PATHS[path], 4), Noise(range(64), (2,)))


@pytest.mark.gpu
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_loop_never_waits_for_a_gpu(name):
    """And gives what it gives on the CPU."""
    shape, points = (3, 4, 4), UniformTime(0.99)(Linear(), 6)

    def sampled(device):
        text = Condition(label=torch.arange(2, device=device))
        denoiser = Denoiser(
            lambda x, time, condition: torch.tanh(x + condition.label[:, None, None, None] + 1e-3 * time[:, None, None, None]),
            Linear(), Flow(),
        )  # fmt: skip
        denoise, noise = ClassifierFree(2.0)(denoiser, text, text[:1]), Noise([1, 2], shape, device)
        return SAMPLERS[name][0](denoise, points[0].std * noise.start(), points, noise)

    sampled("cuda")
    with no_waiting_on_cuda():
        # What is pinned and copied inside, noise of a step among it, is not waited for. The label and its `arange` are
        # made on the device.
        made = sampled("cuda")
    torch.testing.assert_close(made.cpu(), sampled("cpu"), atol=1e-3, rtol=1e-3)
