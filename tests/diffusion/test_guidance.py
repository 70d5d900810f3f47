from functools import partial

import pytest
import torch
from hydra.utils import instantiate

from dit.diffusion.denoiser import Denoiser
from dit.diffusion.editing import Resampled
from dit.diffusion.guidance import AdaptiveProjected, Auto, CfgPlusPlus, ClassifierFree, Embedded, Interval, Rescaled
from dit.diffusion.path import Cosine
from dit.diffusion.prediction import EDM, X0, Eps, Flow, LearnedRange, Score, V
from dit.diffusion.sampler.adaptive import Dopri5
from dit.diffusion.sampler.consistency import consistency
from dit.diffusion.sampler.ddim import ddim
from dit.diffusion.sampler.ddpm import ddpm
from dit.diffusion.sampler.multistep import dpmpp
from dit.diffusion.sampler.runge_kutta import heun
from dit.types import Condition

from ..parts import found, full_name

PATH = Cosine()
POINT = PATH.point(0.6)
CONDITION = Condition(label=torch.tensor([1.0, 2.0, 3.0]))
NULL = Condition(label=torch.tensor([0.0]))
X = torch.randn(3, 4, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def clean(x, label):
    """A model of x0 that hears its condition."""
    return torch.tanh(x + label.double()[:, None, None, None])


def network(prediction, model=clean):
    """The same model, answering in another prediction's terms."""

    def answer(x, time, condition):
        x = x / prediction.input_scale(POINT)
        x0 = model(x, condition.label)
        return prediction.target(x0, (x - POINT.alpha * x0) / POINT.sigma, POINT)

    return answer


def guided(guidance, prediction=None):
    prediction = prediction or X0()
    denoiser = Denoiser(network(prediction), PATH, prediction)
    return guidance(denoiser, CONDITION, NULL)(X, POINT), denoiser.rows


COND, PLAIN = clean(X, CONDITION.label), clean(X, torch.zeros(3))
KINDS = {  # a new guidance in conf/guidance gets these laws without a row
    "classifier_free": ClassifierFree, "rescaled": Rescaled, "apg": AdaptiveProjected,
    "interval": Interval, "auto": partial(Auto, network(X0(), lambda x, label: torch.tanh(x))),
}  # fmt: skip
TESTED = {full_name(kind) for kind in (*KINDS.values(), CfgPlusPlus, Embedded)}
KINDS |= {name: partial(instantiate, node) for name, node in found("guidance", TESTED).items()}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_scale_one_is_the_conditional_model_at_one_call(kind):
    estimate, rows = guided(kind(scale=1.0))
    torch.testing.assert_close(estimate.x0, COND, atol=1e-12, rtol=0)
    assert rows == 3


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_any_other_scale_costs_two(kind):
    estimate, rows = guided(kind(scale=2.0))
    assert rows == 6
    assert (estimate.x0 - COND).abs().max() > 0.01
    # x0 and eps explain x together, so every sampler may use either
    torch.testing.assert_close(POINT.alpha * estimate.x0 + POINT.sigma * estimate.eps, X, atol=1e-12, rtol=0)


def test_scale_zero_is_the_null_model_and_two_extrapolates():
    torch.testing.assert_close(guided(ClassifierFree(0.0))[0].x0, PLAIN)
    torch.testing.assert_close(guided(ClassifierFree(2.0))[0].x0, 2 * COND - PLAIN)


@pytest.mark.parametrize(
    "prediction", [Eps(), V(), Flow(), Score(), EDM(0.7)], ids=["eps", "v", "flow", "score", "edm"]
)
def test_guiding_any_prediction_is_the_same(prediction):
    expected, _ = guided(ClassifierFree(3.0))
    estimate, _ = guided(ClassifierFree(3.0), prediction)
    torch.testing.assert_close(estimate.x0, expected.x0, atol=1e-12, rtol=0)
    torch.testing.assert_close(estimate.eps, expected.eps, atol=1e-12, rtol=0)


def test_the_original_form_guides_its_first_channels_alone():
    """Pitfall: the original DiT guides 3 of the 4 channels; the default guides all."""
    estimate, _ = guided(ClassifierFree(4.0, channels=3))
    full, _ = guided(ClassifierFree(4.0))
    torch.testing.assert_close(estimate.x0[:, :3], full.x0[:, :3])
    torch.testing.assert_close(estimate.x0[:, 3], COND[:, 3])
    assert (full.x0[:, 3] - COND[:, 3]).abs().max() > 0.01


def test_a_learned_spread_is_the_conditional_one():
    prediction = LearnedRange(X0())

    def answer(x, time, condition):
        return torch.cat([clean(x, condition.label), condition.label.double()[:, None, None, None].expand_as(x)], dim=1)

    denoiser = Denoiser(answer, PATH, prediction)
    for guidance in (
        ClassifierFree(3.0),
        ClassifierFree(3.0, 2),
        Rescaled(3.0),
        AdaptiveProjected(3.0),
        CfgPlusPlus(0.5),
    ):
        estimate = guidance(denoiser, CONDITION, NULL)(X, POINT)
        assert estimate.var_logit[:, 0, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(("measure", "lowest", "highest", "inside"), [
    ("t", 0.5, 0.7, True), ("t", 0.6, 0.6 + 1e-9, True), ("t", 0.1, 0.5, False), ("t", 0.7, 0.9, False),
    ("log_snr", POINT.log_snr - 0.1, POINT.log_snr + 0.1, True), ("log_snr", 0.5, 3, False),
])  # fmt: skip
def test_an_interval_guides_within_and_costs_one_call_outside(measure, lowest, highest, inside):
    estimate, rows = guided(Interval(2.0, lowest, highest, measure))
    torch.testing.assert_close(estimate.x0, guided(ClassifierFree(2.0 if inside else 1.0))[0].x0)
    assert rows == (6 if inside else 3)


def test_rescaled_guidance_has_the_conditional_contrast():
    estimate, _ = guided(Rescaled(5.0, amount=1.0))
    torch.testing.assert_close(estimate.x0.flatten(1).std(1), COND.flatten(1).std(1))
    torch.testing.assert_close(guided(Rescaled(5.0, amount=0.0))[0].x0, guided(ClassifierFree(5.0))[0].x0)


def test_rescaling_is_that_of_diffusers():
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    theirs = rescale_noise_cfg(PLAIN + 5 * (COND - PLAIN), COND, guidance_rescale=0.7)
    torch.testing.assert_close(guided(Rescaled(5.0, amount=0.7))[0].x0, theirs)


def test_apg_pushes_across_the_conditional_estimate_within_its_bound():
    estimate, _ = guided(AdaptiveProjected(3.0, bound=0.5))
    push = (estimate.x0 - COND) / 2
    assert (push * COND).flatten(1).sum(1).abs().max() < 1e-12
    assert push.flatten(1).norm(dim=1).max() <= 0.5 + 1e-12


def test_apg_without_its_parts_is_classifier_free_guidance():
    plain, _ = guided(AdaptiveProjected(3.0, momentum=0.0, bound=0.0, parallel=1.0))
    torch.testing.assert_close(plain.x0, guided(ClassifierFree(3.0))[0].x0)


def test_apg_is_that_of_diffusers():
    from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance

    buffer, walk = MomentumBuffer(-0.5), AdaptiveProjected(3.0)(Denoiser(network(X0()), PATH, X0()), CONDITION, NULL)
    for x in (X, X + 1, X - 1):
        cond, plain = clean(x, CONDITION.label), clean(x, torch.zeros(3))
        theirs = normalized_guidance(
            cond, plain, 2.0, momentum_buffer=buffer, eta=0.0, norm_threshold=15.0, use_original_formulation=True
        )
        torch.testing.assert_close(walk(x, POINT).x0, theirs)


def test_apg_forgets_between_batches():
    guidance = AdaptiveProjected(3.0)
    torch.testing.assert_close(guided(guidance)[0].x0, guided(guidance)[0].x0)


def test_cfg_plus_plus_is_the_guided_x0_with_the_unconditional_noise():
    estimate, rows = guided(CfgPlusPlus(0.6))
    torch.testing.assert_close(estimate.x0, PLAIN + 0.6 * (COND - PLAIN))
    torch.testing.assert_close(estimate.eps, (X - POINT.alpha * PLAIN) / POINT.sigma)
    assert rows == 6


def test_autoguidance_moves_away_from_the_weaker_network_with_the_same_condition():
    weak = network(X0(), lambda x, label: clean(x, 0.5 * label))
    estimate, _ = guided(Auto(weak, 2.0))
    torch.testing.assert_close(estimate.x0, 2 * COND - clean(X, 0.5 * CONDITION.label))


def test_an_embedded_scale_is_an_input_of_the_network_at_one_call():
    read = network(X0(), lambda x, label: clean(x, label))

    def distilled(x, time, condition):
        return read(x, time, condition) * condition.extra["guidance_scale"].view(-1, 1, 1, 1)

    denoiser = Denoiser(distilled, PATH, X0())
    estimate = Embedded(2.5)(denoiser, CONDITION, None)(X, POINT)
    torch.testing.assert_close(estimate.x0, 2.5 * COND)
    assert denoiser.rows == 3


HALF_CFG_PLUS_PLUS = Interval(0.5, guidance=CfgPlusPlus)


@pytest.mark.parametrize(
    "guidance", [*(k(scale=2.0) for k in KINDS.values()), CfgPlusPlus(0.5), HALF_CFG_PLUS_PLUS, Embedded()]
)
@pytest.mark.parametrize("sampler", [ddim, ddpm, consistency, heun, dpmpp, Dopri5()])
def test_a_guidance_looks_through_what_is_wrapped_around_a_sampler(guidance, sampler):
    """CFG++ works with samplers that jump along (x0, eps), every other guidance with all."""
    is_cfg_plus_plus = guidance is HALF_CFG_PLUS_PLUS or isinstance(guidance, CfgPlusPlus)
    expected = sampler in (ddim, ddpm, consistency) or not is_cfg_plus_plus
    for wrapped in (sampler, partial(sampler), Resampled(sampler), partial(Resampled(partial(sampler)))):
        assert guidance.supports(wrapped) is expected


@pytest.mark.parametrize(("guidance", "uses"), [
    *((kind(scale=scale), scale != 1) for name, kind in KINDS.items() if name != "auto" for scale in (0.0, 1.0, 2.0)),
    *((CfgPlusPlus(scale), True) for scale in (0.0, 0.6, 1.0)),
    (KINDS["auto"](scale=2.0), False), (KINDS["auto"](scale=1.0), False), (Embedded(2.0), False), (HALF_CFG_PLUS_PLUS, True),
])  # fmt: skip
def test_a_guidance_says_whether_the_null_condition_changes_its_result(guidance, uses):
    denoiser = Denoiser(network(X0()), PATH, X0())
    one, other = (guidance(denoiser, CONDITION, Condition(label=torch.tensor([c])))(X, POINT) for c in (0.0, 4.0))
    assert guidance.uses_null is uses is not (torch.equal(one.x0, other.x0) and torch.equal(one.eps, other.eps))


@pytest.mark.parametrize(("make", "fault"), [
    (lambda: ClassifierFree(-1), "scale=-1"), (lambda: Rescaled(2.0, 1.5), "amount=1.5"), (lambda: CfgPlusPlus(-1), "scale=-1"),
    (lambda: AdaptiveProjected(2.0, bound=-1), "bound=-1"), (lambda: Interval(2.0, 0.8, 0.2), "lowest=0.8 must be below"),
    (lambda: Interval(2.0, measure="sigma"), "measure='sigma'"),
    (lambda: Embedded(-1), "scale=-1"),
    (lambda: ClassifierFree(2.0)(Denoiser(network(X0()), PATH, X0()), CONDITION, None), "null condition"),
])  # fmt: skip
def test_bad_guidance_is_refused(make, fault):
    with pytest.raises(ValueError, match=fault):
        make()
