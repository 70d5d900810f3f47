"""Our samplers and losses against numbers that the published code made (fixtures/README.md), in float64."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from dit.diffusion.guidance import Auto
from dit.diffusion.objective import Hybrid, Objective
from dit.diffusion.objective import edm as edm_weighting
from dit.diffusion.path import DiscreteBetas, Linear, VarianceExploding, linear_betas
from dit.diffusion.prediction import EDM, Eps, Estimate, Flow, LearnedRange
from dit.diffusion.sampler.ddim import ddim
from dit.diffusion.sampler.ddpm import ddpm
from dit.diffusion.sampler.multistep import dpmpp, exact, halved, midpoint
from dit.diffusion.sampler.runge_kutta import heun
from dit.diffusion.sampler.singlestep import dpmpp_2s
from dit.diffusion.sampler.stochastic import constant, decreasing, edm, euler_maruyama, linear, score_based, sigma
from dit.diffusion.time import Karras, Leading, LogNormalSigma, Respaced, UniformLogSNR, UniformTime, points_at

FIXTURES = Path(__file__).parent / "fixtures"
DIT, KDIFF, EDM2, SIT = (
    json.loads((FIXTURES / f"{name}.json").read_text()) for name in ("original_dit", "k_diffusion", "edm", "sit")
)
CLOSE = {"atol": 1e-10, "rtol": 1e-10}


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def clean(x, alpha, sigma, s=0.5):
    """E[x0 | x] of the two-hump data of the fixtures."""
    v = alpha**2 * s**2 + sigma**2
    return (alpha * s**2 * x + sigma**2 * torch.tanh(alpha * x / v)) / v


def denoise(x, point, s=0.5):
    return Estimate.of_x0(x, clean(x, point.alpha, point.sigma, s), point, torch.sin(3 * x))


def drawn(file, case):
    """The recorded draws, in order, whatever the step they are for."""
    draws = iter(file["noise"][: case["draws"]])
    return lambda here, there: tensor(next(draws))


def named(case):
    return " ".join(str(v) for k, v in case.items() if k not in ("result", "calls", "draws"))


# --- the original DiT


@pytest.mark.parametrize("case", DIT["cases"], ids=named)
def test_original_dit_samplers(case):
    path = DiscreteBetas(linear_betas(1000))
    grid = Leading() if case["respacing"].startswith("ddim") else Respaced()
    points = grid(path, len(DIT["timestep_map"][case["respacing"]]))
    if case["sampler"] == "ddim_sample_loop":
        sampler = partial(ddim, eta=case["eta"])
    else:
        short = {"learned_range": "learned", "fixed_small": "small", "fixed_large": "large"}
        sampler = partial(ddpm, variance=short[case["variance"]])
    made = sampler(denoise, tensor(DIT["start"]), points, drawn(DIT, case))
    torch.testing.assert_close(made, tensor(case["result"]), **CLOSE)


@pytest.mark.parametrize("respacing", ["10", "25", "ddim10"])
def test_original_respacing(respacing):
    """Pitfall: "n" is the rounded linspace, "ddimN" is leading."""
    kept = DIT["timestep_map"][respacing]
    grid = Leading() if respacing.startswith("ddim") else Respaced()
    assert grid.indices(len(kept))[::-1].tolist() == kept


@pytest.mark.parametrize("case", DIT["losses"], ids=lambda c: c["respacing"] or "all")
def test_original_hybrid_loss(case):
    whole, eps, x0 = DiscreteBetas(linear_betas(1000)), tensor(case["noise"]), tensor(case["x_start"])
    kept = DIT["timestep_map"].get(case["respacing"], list(range(1000)))
    alpha_bar = whole.alphas[1:][kept] ** 2
    path = DiscreteBetas(1 - alpha_bar / torch.cat([torch.ones(1), alpha_bar[:-1]]))
    t = (tensor(case["t"]) + 1) / len(kept)
    point = path.point(t.view(-1, 1, 1, 1))
    x = point.alpha * x0 + point.sigma * eps
    estimate = denoise(x, point)
    objective = Hybrid(path, LearnedRange(Eps()), None)
    answer = torch.cat([estimate.eps, estimate.var_logit], dim=1)
    bound = objective.bound(estimate.eps, estimate.var_logit, x0, eps, point) * len(kept) / 1000
    torch.testing.assert_close(bound, tensor(case["vb"]), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(objective.loss(answer, x0, eps, point), tensor(case["loss"]), atol=1e-9, rtol=1e-9)


def test_the_bound_is_that_of_a_chain():
    x, point = torch.zeros(1, 1, 2, 2), Linear().point(tensor([0.5]).view(-1, 1, 1, 1))
    with pytest.raises(ValueError, match="choose path=ddpm_linear"):
        Hybrid(Linear(), LearnedRange(Eps()), None).loss(torch.zeros(1, 2, 2, 2), x, x, point)


def test_the_bound_teaches_the_spread_alone():
    torch.manual_seed(0)
    x0, eps, answer = torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 3), torch.randn(4, 4, 3, 3, requires_grad=True)
    path = DiscreteBetas(linear_betas(1000))
    point = path.point(tensor([0.001, 0.2, 0.5, 1.0]).view(-1, 1, 1, 1))
    hybrid = Hybrid(path, LearnedRange(Eps()), None)
    hybrid.loss(answer, x0, eps, point).sum().backward()
    plain = answer.detach()[:, :2].clone().requires_grad_()
    Objective(path, Eps(), None).loss(plain, x0, eps, point).sum().backward()
    torch.testing.assert_close(answer.grad[:, :2], plain.grad)
    assert (answer.grad[:, 2:] != 0).all()
    for wrong in (lambda: Hybrid(path, Eps(), None), lambda: Objective(path, LearnedRange(Eps()), None)):
        with pytest.raises(ValueError, match="objective=hybrid"):
            wrong()


# --- k-diffusion


def k_rule(nodes, z):
    """Its third-order sampler: exact through two nodes, half of the second difference through three."""
    return exact(nodes, z) if len(nodes) < 3 else halved(nodes, z)


K_SAMPLERS = {
    "sample_euler": lambda c: ddim,
    "sample_euler_ancestral": lambda c: partial(ddim, eta=c["eta"]),
    "sample_heun": lambda c: partial(heun, frame="sigma"),
    "sample_dpmpp_2s_ancestral": lambda c: dpmpp_2s,  # without noise alone: with it, it is another sampler
    "sample_dpmpp_sde": lambda c: partial(dpmpp_2s, eta=c["eta"]),
    "sample_dpmpp_2m": lambda c: partial(dpmpp, rule=midpoint),
    "sample_dpmpp_2m_sde": lambda c: partial(
        dpmpp, eta=c["eta"], rule={"midpoint": midpoint, "heun": exact}[c["solver_type"]]
    ),
    "sample_dpmpp_3m_sde": lambda c: partial(dpmpp, order=3, eta=c["eta"], rule=k_rule),
}
K_CASES = [c for c in KDIFF["cases"] if not (c["sampler"] == "sample_dpmpp_2s_ancestral" and c["eta"])]


@pytest.mark.parametrize("case", K_CASES, ids=named)
def test_k_diffusion_samplers(case):
    points = points_at(VarianceExploding(1.0), tensor(KDIFF["grid"]))
    sampler = K_SAMPLERS[case["sampler"]](case)
    made = sampler(denoise, tensor(KDIFF["start"]) * KDIFF["grid"][0], points, drawn(KDIFF, case))
    torch.testing.assert_close(made, tensor(case["result"]), **CLOSE)


def test_k_diffusion_grids():
    compared = 0
    for row in KDIFF["grids"]:
        a = row["arguments"]
        if row["grid"] == "get_sigmas_karras":
            grid = Karras(a["sigma_min"], a["sigma_max"], a.get("rho", 7.0))
        elif row["grid"] == "get_sigmas_exponential":
            grid = UniformLogSNR(-np.log(a["sigma_max"]), -np.log(a["sigma_min"]))
        else:
            continue
        made = [p.sigma for p in grid(VarianceExploding(), a["n"])]
        np.testing.assert_allclose(made, row["sigmas"], rtol=1e-9, atol=0)
        compared += 1
    assert compared >= 3


# --- EDM


@pytest.mark.parametrize("case", EDM2["cases"], ids=named)
def test_edm_sampler(case):
    points = Karras(case["sigma_min"], case["sigma_max"], case["rho"])(VarianceExploding(), case["num_steps"])
    weak, strong = (partial(denoise, s=s) for s in (0.9, 0.5))

    class Twice:
        """What `Auto` asks of a denoiser."""

        def __call__(self, x, point, condition, network=None):
            return (network or strong)(x, point)

    guided = Auto(weak, case["guidance"])(Twice(), None, None)
    sampler = partial(
        edm, churn=case["S_churn"], lowest=case["S_min"], highest=case["S_max"], inflation=case["S_noise"]
    )
    made = sampler(guided, tensor(EDM2["start"]) * EDM2["grid"][0], points, drawn(EDM2, case))
    torch.testing.assert_close(made, tensor(case["result"]), **CLOSE)


@pytest.mark.parametrize("row", EDM2["preconditioning"], ids=lambda row: str(row["sigma_data"]))
def test_edm_preconditioning(row):
    path, prediction = VarianceExploding(1e4), EDM(row["sigma_data"])
    x, f = torch.randn(2, 5, dtype=torch.float64)
    for level, c_skip, c_out, c_in, c_noise in zip(
        *(row[k] for k in ("sigma", "c_skip", "c_out", "c_in", "c_noise")), strict=True
    ):
        point = path.point(level / 1e4)
        assert prediction.input_scale(point) == pytest.approx(c_in, rel=1e-9)
        assert prediction.c_noise(point) == pytest.approx(c_noise, rel=1e-6, abs=1e-6)
        torch.testing.assert_close(prediction.estimate(x, f, point).x0, c_skip * x + c_out * f, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("case", EDM2["losses"], ids=lambda c: str(c["P_mean"]))
def test_edm_loss(case):
    path, prediction = VarianceExploding(1e4), EDM(case["sigma_data"])
    u = torch.special.ndtr(tensor(case["normal"]))
    t = LogNormalSigma(case["P_mean"], case["P_std"])(path, u)
    torch.testing.assert_close(t * 1e4, tensor(case["sigma"]), atol=0, rtol=1e-9)
    x0, eps = tensor(case["images"]), tensor(case["noise"])
    point = path.point(t.view(-1, 1, 1, 1))
    x = x0 + point.sigma * eps
    answer = prediction.target(denoise(x, point).x0, denoise(x, point).eps, point)
    weighting = partial(edm_weighting, sigma_data=case["sigma_data"])
    made = Objective(path, prediction, None, weighting).loss(answer, x0, eps, point)
    theirs = (tensor(case["loss"]) - case["log_variance"]) * np.exp(case["log_variance"])
    torch.testing.assert_close(made, theirs.flatten(1).mean(1), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(weighting(point, prediction), torch.ones_like(point.t), atol=1e-9, rtol=0)


# --- SiT

FORMS = {"sigma": sigma, "SBDM": score_based, "linear": linear, "constant": constant, "decreasing": decreasing}
SIT_SDE = [c for c in SIT["cases"] if c["sampler"] == "sample_sde" and c["sampling_method"].lower() == "euler"]


@pytest.mark.parametrize("case", [c for c in SIT_SDE if c["last_step"] in ("Mean", "Euler", "Tweedie")], ids=named)
def test_sit_sde_sampler(case):
    """Ours ends with a jump to x0 (Tweedie); SiT's other last steps are compared before it, from what they end in."""
    name = "sample_sde SBDM" if case["diffusion_form"] == "SBDM" else "sample_sde"
    points = points_at(Linear(), 1 - tensor(SIT["grids"][name]))
    diffusion = partial(FORMS[case["diffusion_form"]], norm=case["diffusion_norm"])
    before = euler_maruyama(denoise, tensor(SIT["start"]), points[:-1], drawn(SIT, case), diffusion)
    last = points[-2]
    estimate = denoise(before, last)
    velocity = estimate.x0 - estimate.eps
    drift = velocity - diffusion(last) * estimate.eps / last.sigma
    step = case["last_step_size"]
    made = {"Mean": before + step * drift, "Euler": before + step * velocity, "Tweedie": estimate.x0}[case["last_step"]]
    torch.testing.assert_close(made, tensor(case["result"]), **CLOSE)
    if case["last_step"] == "Tweedie":
        ours = euler_maruyama(denoise, tensor(SIT["start"]), points, drawn(SIT, case), diffusion)
        torch.testing.assert_close(ours, tensor(case["result"]), **CLOSE)


def test_sit_euler_ode():
    (case,) = (c for c in SIT["cases"] if c["sampler"] == "sample_ode" and c["sampling_method"] == "euler")
    points = UniformTime()(Linear(), 10)
    made = ddim(denoise, tensor(SIT["start"]), points, None)
    torch.testing.assert_close(made, tensor(case["result"]), **CLOSE)


def test_sit_velocity_is_ours_backwards():
    """SiT's time runs to the data: its velocity x0 - eps is the negative of the flow of our linear path."""
    x0, eps = torch.randn(2, 5, dtype=torch.float64)
    torch.testing.assert_close(Flow().target(x0, eps, Linear().point(0.3)), -(x0 - eps))
