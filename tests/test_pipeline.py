from functools import partial

import pytest
import torch

from dit.backbones.text_dit import TextDiT
from dit.diffusion.editing import Resampled
from dit.diffusion.guidance import Auto, CfgPlusPlus, ClassifierFree, Interval
from dit.diffusion.path import DiscreteBetas, Linear, cosine_betas
from dit.diffusion.prediction import EDM, Eps, Flow, LearnedRange
from dit.diffusion.sampler.adaptive import Dopri5
from dit.diffusion.sampler.ddim import ddim
from dit.diffusion.sampler.ddpm import ddpm
from dit.diffusion.sampler.multistep import dpmpp, unipc
from dit.diffusion.sampler.runge_kutta import heun
from dit.diffusion.time import Karras, UniformTime
from dit.encoders.autoencoder import PretrainedAutoencoder
from dit.encoders.text import WordEncoder
from dit.pipeline import Pipeline, Recipe

PROMPTS = ["a large red star", "a small blue circle", "a red circle", "star", ""]


def pipeline(path=None, prediction=None):
    torch.manual_seed(0)
    text = WordEncoder(["a", "large", "small", "red", "blue", "star", "circle"])
    net = TextDiT(channels=4, token_dim=64, pooled_dim=64, width=32, depth=2, heads=2)
    for p in net.parameters():
        if p.abs().max() == 0:
            torch.nn.init.normal_(p, std=0.05)
    return Pipeline(
        net, path or Linear(), prediction or Flow(), text, PretrainedAutoencoder("shapes_autoencoder"), (4, 8, 8)
    )


def recipe(sampler=ddim, steps=4, scale=3.0):
    return Recipe(sampler, UniformTime(0.99), steps, ClassifierFree(scale))


def stochastic(denoise, x, points, noise):
    return ddim(denoise, x, points, noise, eta=1.0)


@pytest.mark.parametrize("sampler", [ddim, heun, dpmpp, unipc, Dopri5(1e-3, 1e-3), stochastic])
@pytest.mark.parametrize("parts", [(Linear(), Flow()), (DiscreteBetas(cosine_betas(1000)), Eps())], ids=["flow", "eps"])
def test_a_picture_depends_on_its_prompt_and_seed_alone(sampler, parts):
    pipe, seeds = pipeline(*parts), [3, 1, 4, 1, 5]
    together = pipe(PROMPTS, seeds, recipe(sampler)).images
    in_threes = pipe(PROMPTS, seeds, recipe(sampler), batch_size=3).images
    torch.testing.assert_close(in_threes, together, atol=1e-4, rtol=0)
    for row in range(5):
        alone = pipe([PROMPTS[row]], [seeds[row]], recipe(sampler)).images[0]
        torch.testing.assert_close(alone, together[row], atol=1e-4, rtol=0)


def test_the_seed_and_the_prompt_matter():
    pipe = pipeline()
    one, other_seed, other_prompt = pipe(PROMPTS[:1] * 2 + PROMPTS[1:2], [0, 1, 0], recipe()).images
    assert (one - other_seed).abs().max() > 0.01
    assert (one - other_prompt).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("sampler", "steps", "scale", "nfe"),
    [(ddim, 5, 1.0, 5), (ddim, 5, 2.0, 10), (heun, 3, 1.0, 5), (heun, 3, 4.0, 10)],
)
def test_network_evaluations_are_counted(sampler, steps, scale, nfe):
    pipe = pipeline()
    assert pipe(PROMPTS, range(5), recipe(sampler, steps, scale), batch_size=2).nfe == nfe


def test_an_adaptive_sampler_counts_what_each_picture_took():
    pipe = pipeline()
    both = pipe(PROMPTS[:2], [0, 1], recipe(Dopri5(1e-3, 1e-3), scale=1.0)).nfe
    alone = [pipe(PROMPTS[i : i + 1], [i], recipe(Dopri5(1e-3, 1e-3), scale=1.0)).nfe for i in (0, 1)]
    assert both == sum(alone) / 2 > 5


def watched(pipe, kind=torch.nn.Linear):
    """The types that the network's layers of a kind give, as it is called."""
    seen = set()
    for module in pipe.backbone.modules():
        if isinstance(module, kind):
            module.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    return seen


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_bf16_is_the_networks_alone(scale):
    """The sampler's state, what it gets of the network, and the pictures stay float32."""
    pipe, seen = pipeline(), set()

    def sampler(denoise, x, points, noise):
        def noted(x, point):
            estimate = denoise(x, point)
            seen.update((x.dtype, estimate.x0.dtype, estimate.eps.dtype))
            return estimate

        return ddim(noted, x, points, noise)

    plain = pipe(PROMPTS, range(5), recipe(sampler, scale=scale)).images
    layers = watched(pipe)
    brief = pipe.sample_in("bf16")(PROMPTS, range(5), recipe(sampler, scale=scale)).images
    assert pipe.precision == "bf16"
    assert layers == {torch.bfloat16}
    assert seen == {torch.float32}
    assert brief.dtype == torch.float32
    assert 0 < (brief - plain).abs().max() < 0.2
    layers.clear()
    again = pipe.sample_in("auto")(PROMPTS, range(5), recipe(sampler, scale=scale)).images
    assert (pipe.precision, layers) == ("32", {torch.float32})
    assert torch.equal(again, plain)


def test_the_second_network_of_autoguidance_is_called_like_the_first():
    pipe, weak = pipeline(), pipeline()
    layers = watched(weak)
    pipe.sample_in("bf16")(PROMPTS, range(5), Recipe(ddim, UniformTime(0.99), 2, Auto(weak.backbone, 2.0)))
    assert layers == {torch.bfloat16}


def test_a_precision_that_is_none_is_refused():
    with pytest.raises(ValueError, match="precision=half"):
        pipeline().sample_in("half")
    with pytest.raises(ValueError, match="precision=tf32: cpu has no TF32"):
        pipeline().sample_in("tf32")(PROMPTS, range(5), recipe())


def test_networks_are_compiled_once_and_only_where_it_is_asked_for(monkeypatch):
    pipe, weak, compiled = pipeline(), pipeline().backbone, []
    monkeypatch.setattr(torch, "compile", lambda network: compiled.append(network) or network)
    guided = Recipe(ddim, UniformTime(0.99), 2, Auto(weak, 2.0))
    pipe(PROMPTS, range(5), guided)
    assert compiled == []
    plain = [pipe.sample_in(compile=True)(PROMPTS, range(5), guided).images for _ in range(2)]
    assert compiled == [pipe.backbone, weak]
    assert torch.equal(*plain)


@pytest.mark.slow
def test_a_compiled_network_makes_the_same_pictures():
    pipe = pipeline()
    plain = pipe(PROMPTS, range(5), recipe()).images
    compiled = pipe.sample_in(compile=True)(PROMPTS, range(5), recipe(), batch_size=2).images
    torch.testing.assert_close(compiled, plain, atol=1e-4, rtol=0)


def test_a_negative_prompt_takes_the_place_of_no_text():
    pipe = pipeline()
    away = Recipe(ddim, UniformTime(0.99), 4, ClassifierFree(3.0), negative=PROMPTS[1])
    plain, pushed = (pipe(PROMPTS[:1], [0], r).images for r in (recipe(), away))
    assert (plain - pushed).abs().max() > 1e-4
    same = Recipe(ddim, UniformTime(0.99), 4, ClassifierFree(3.0), negative="")
    torch.testing.assert_close(pipe(PROMPTS[:1], [0], same).images, plain)


def test_cfg_plus_plus_takes_a_negative_prompt_at_scale_one():
    """Its scale 1 too moves along the estimate of the negative prompt."""
    pipe = pipeline()
    plain, pushed = (
        pipe(PROMPTS[:1], [0], Recipe(ddim, UniformTime(0.99), 4, CfgPlusPlus(1.0), negative=text)).images
        for text in (None, PROMPTS[1])
    )
    assert (plain - pushed).abs().max() > 1e-4
    for guidance in (ClassifierFree(1.0), Interval(1.0), Auto(pipe.backbone, 2.0)):
        with pytest.raises(ValueError, match="negative='star' has no effect"):
            Recipe(ddim, UniformTime(), 4, guidance, negative="star")


@pytest.mark.parametrize(
    "wrapped", [partial(Dopri5(1e-3, 1e-3)), Resampled(Dopri5(1e-3, 1e-3), 1)], ids=["partial", "resampled"]
)
def test_an_adaptive_sampler_takes_one_sample_at_a_time_whatever_is_around_it(wrapped):
    pipe = pipeline()
    both = pipe(PROMPTS[:2], [0, 1], recipe(wrapped, scale=1.0)).images
    alone = [pipe(PROMPTS[i : i + 1], [i], recipe(wrapped, scale=1.0)).images[0] for i in (0, 1)]
    torch.testing.assert_close(both, torch.stack(alone), atol=1e-6, rtol=0)


def test_a_resampled_sampler_is_served_by_cfg_plus_plus():
    pipe, sampler = pipeline(), Resampled(partial(ddim, eta=1.0), 2, 2)
    how = Recipe(sampler, UniformTime(), 4, CfgPlusPlus(0.6))
    pipe.check(how)
    assert pipe(PROMPTS[:1], [0], how).images.isfinite().all()
    with pytest.raises(ValueError, match="CfgPlusPlus guidance works only with ddim, ddpm and consistency"):
        Recipe(Resampled(heun), UniformTime(), 4, CfgPlusPlus(0.6))


@pytest.mark.parametrize(("parts", "how", "fault"), [
    ((Linear(), Eps()), Recipe(ddim, UniformTime(), 4, ClassifierFree()), "Eps prediction does not determine x0 at t=1"),
    ((Linear(), Flow()), Recipe(partial(heun, frame="sigma"), UniformTime(), 4, ClassifierFree()), "frame=sigma cannot start"),
    ((Linear(), EDM()), Recipe(ddim, UniformTime(), 4, ClassifierFree()), "infinite at t=1"),
    ((DiscreteBetas(cosine_betas(1000)), Eps()), Recipe(ddim, UniformTime(), 4, ClassifierFree()), "does not determine x0 at t=1"),
    ((Linear(), Flow()), recipe(partial(ddpm, variance="learned")), "variance=learned needs a network"),
    ((DiscreteBetas(cosine_betas(1000)), Eps()), Recipe(ddim, Karras(sigma_max=1e9), 4, ClassifierFree()), "the path ends at"),
])  # fmt: skip
def test_a_recipe_that_cannot_work_is_refused_without_the_network(parts, how, fault):
    pipe = pipeline(*parts)
    pipe.backbone.forward = None
    with pytest.raises(ValueError, match=fault):
        pipe.check(how)


def test_a_model_that_knows_no_null_is_not_guided_away_from_it():
    """Trained with caption_dropout=0, its answer to no text means nothing."""
    pipe = pipeline()
    pipe.trained_with_null = False
    assert pipe(PROMPTS[:1], [0], recipe(scale=1.0)).images.isfinite().all()
    assert pipe(PROMPTS[:1], [0], Recipe(ddim, UniformTime(), 4, ClassifierFree(3.0), "star")).images.isfinite().all()
    for use in (pipe.check, lambda r: pipe(PROMPTS[:1], [0], r)):
        with pytest.raises(ValueError, match="caption_dropout=0"):
            use(recipe(scale=3.0))


def test_what_can_be_walked_is_not_refused():
    for parts in ((Linear(), Flow()), (DiscreteBetas(cosine_betas(1000)), LearnedRange(Eps()))):
        for sampler in (ddim, heun, dpmpp, unipc, Dopri5(), partial(ddpm, variance="large")):
            pipeline(*parts).check(recipe(sampler))


def test_an_edit_is_made_of_latents():
    pipe, image = pipeline(), torch.rand(3, 32, 24) * 2 - 1
    mask = torch.zeros(32, 24)
    mask[5, 9] = 1
    edit = pipe.edit(image, 0.5, mask)
    assert edit.x0.shape == (1, 4, 8, 6)
    assert edit.mask.nonzero().tolist() == [[0, 0, 1, 2]]  # the latent that holds the pixel
    assert pipe.edit(image, border=(4, 0, 8, 0)).x0.shape == (1, 4, 8, 9)
    made = pipe(PROMPTS, range(5), recipe(), batch_size=2, edit=edit).images
    assert made.shape == (5, 3, 32, 24)
    for call, fault in (
        (lambda: pipe.edit(image, border=(3, 0, 0, 0)), "multiple of 4"),
        (lambda: pipe.edit(image, 1.0, mask, (4, 0, 0, 0)), "cannot be combined"),
        (lambda: pipe.edit(image, 1.0, mask.T), "does not fit"),
    ):
        with pytest.raises(ValueError, match=fault):
            call()


def test_sampling_leaves_the_training_mode_and_the_random_state_alone():
    pipe = pipeline()
    pipe.backbone.train()
    before = torch.get_rng_state()
    pipe(PROMPTS, range(5), recipe(stochastic))
    assert pipe.backbone.training
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("prompts", "seeds", "batch", "fault"), [
    ([], [], 4, "list of prompts is empty"), (["star"], [1, 2], 4, "1 prompts but 2 seeds"), (["star"], [1], 0, "batch_size=0"),
])  # fmt: skip
def test_bad_calls_are_refused(prompts, seeds, batch, fault):
    with pytest.raises(ValueError, match=fault):
        pipeline()(prompts, seeds, recipe(), batch_size=batch)


def test_a_recipe_takes_one_sampler_and_a_step():
    with pytest.raises(ValueError, match="steps=0"):
        recipe(steps=0)
    with pytest.raises(ValueError, match="choose one"):
        Recipe.from_config({"a": ddim, "b": heun}, UniformTime(), 4, ClassifierFree())
