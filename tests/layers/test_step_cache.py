"""Laws of step caching, for every backbone and in the pipeline."""

from dataclasses import replace

import pytest
import torch

from dit.backbones.text_dit import TextDiT
from dit.diffusion.guidance import Auto, ClassifierFree, Interval
from dit.diffusion.path import Linear
from dit.diffusion.prediction import Flow
from dit.diffusion.sampler.ddim import ddim
from dit.diffusion.sampler.runge_kutta import heun
from dit.diffusion.time import UniformTime
from dit.encoders.autoencoder import PretrainedAutoencoder
from dit.encoders.text import WordEncoder
from dit.layers.step_cache import FirstBlockCache, StepCache
from dit.pipeline import Pipeline, Recipe

from ..backbones.test_backbones import OWN, inputs, woken

ALWAYS, NEVER = FirstBlockCache(float("inf")), FirstBlockCache(0.0)
PROMPTS = ["a large red star", "a small blue circle", "a red circle", "star", "", "a star", "blue", "a large circle"]


def depth_of(net) -> int:
    stacks = ("blocks", "single_blocks", "encoder", "decoder")
    return sum(len(getattr(net, name)) for name in stacks if hasattr(net, name))


@pytest.mark.parametrize("make", OWN.values(), ids=OWN)
class TestEveryBackbone:
    def test_threshold_zero_changes_no_bit_and_runs_every_block(self, make):
        net, (x, time, condition) = woken(make), inputs()
        cache = StepCache(NEVER)
        for at in (time, time + 1e-3, time + 1e-3):
            assert torch.equal(cache.call(net, x, at, condition), net(x, at, condition))
        assert (cache.computed, cache.saved, cache.rows) == (9 * depth_of(net), 0, 9)

    def test_a_reuse_at_the_same_input_changes_nothing_and_saves_all_blocks_but_the_first(self, make):
        net, (x, time, condition) = woken(make), inputs()
        cache, expected = StepCache(ALWAYS), net(x, time, condition)
        assert torch.equal(cache.call(net, x, time, condition), expected)
        torch.testing.assert_close(cache.call(net, x, time, condition), expected, atol=1e-5, rtol=0)
        depth = depth_of(net)
        assert (cache.computed, cache.saved) == (3 * depth + 3, 3 * (depth - 1))
        assert cache.rows == pytest.approx(3 + 3 / depth)

    def test_each_row_decides_for_itself(self, make):
        """Of three samples one changes: it alone is computed, exactly as without a cache."""
        net, (x, time, condition) = woken(make), inputs()
        cache = StepCache(FirstBlockCache(1e-4))
        before = cache.call(net, x, time, condition)
        moved = x.clone()
        moved[1] = -x[1]
        after = cache.call(net, moved, time, condition)
        assert (cache.saved, cache.computed) == (2 * (depth_of(net) - 1), 4 * depth_of(net) + 2)
        torch.testing.assert_close(after[1], net(moved, time, condition)[1], atol=1e-5, rtol=0)
        torch.testing.assert_close(after[[0, 2]], before[[0, 2]], atol=1e-5, rtol=0)
        assert (after[1] - before[1]).abs().max() > 1e-3

    def test_text_of_another_length_is_no_other_sample(self, make):
        """Guidance within an interval pads the text of the same rows to other lengths."""
        net, (x, time, condition) = woken(make), inputs()
        rows = torch.tensor([1, 2])
        x, time, condition = x[rows], time[rows], condition[rows]
        cache = StepCache(ALWAYS)
        plain = cache.call(net, x, time, condition)
        short = condition.trim() if condition.mask is not None else condition
        torch.testing.assert_close(cache.call(net, x, time, short), plain, atol=1e-5, rtol=0)
        assert cache.saved == 2 * (depth_of(net) - 1)


def pipeline(depth=3):
    torch.manual_seed(0)
    text = WordEncoder(["a", "large", "small", "red", "blue", "star", "circle"])
    net = TextDiT(channels=4, token_dim=64, pooled_dim=64, width=32, depth=depth, heads=2)
    for p in net.parameters():
        if p.abs().max() == 0:
            torch.nn.init.normal_(p, std=0.05)
    return Pipeline(net, Linear(), Flow(), text, PretrainedAutoencoder("shapes_autoencoder"), (4, 8, 8))


def recipe(cache, guidance=None, steps=8, sampler=ddim):
    return Recipe(sampler, UniformTime(0.99), steps, guidance or ClassifierFree(3.0), cache=cache)


@pytest.mark.parametrize("sampler", [ddim, heun], ids=["ddim", "heun"])
@pytest.mark.parametrize(
    "guidance", [ClassifierFree(1.0), ClassifierFree(3.0), Interval(3.0)], ids=["1", "3", "interval"]
)
def test_a_picture_depends_on_its_seed_alone_and_not_on_its_batch(sampler, guidance):
    """Decisions are made for each sample, so that a batch of 8 saves for each picture what it saves alone."""
    pipe, seeds, how = pipeline(), range(8), recipe(FirstBlockCache(0.08), guidance, sampler=sampler)
    together = pipe(PROMPTS, seeds, how)
    alone = [pipe([prompt], [seed], how) for prompt, seed in zip(PROMPTS, seeds, strict=True)]
    torch.testing.assert_close(together.images, torch.cat([one.images for one in alone]), atol=1e-4, rtol=0)
    saved = [one.cached.saved for one in alone]
    assert together.cached.saved == sum(saved) / 8
    assert len(set(saved)) > 1, "samples differ in what they save, so that a decision for the batch would show"
    assert (together.images - pipe(PROMPTS, seeds, replace(how, cache=None)).images).abs().max() > 1e-3


def test_threshold_zero_makes_the_same_pictures_to_the_bit():
    pipe = pipeline()
    plain, cached = (pipe(PROMPTS, range(8), recipe(cache)) for cache in (None, NEVER))
    assert torch.equal(plain.images, cached.images)
    assert plain.cached is None
    assert (cached.nfe, cached.cached.nfe, cached.cached.computed, cached.cached.saved) == (16, 16, 48, 0)


@pytest.mark.parametrize(("warmup", "most", "complete"), [(1, None, 1), (3, None, 3), (1, 3, 2), (2, 1, 5)])
def test_a_very_large_threshold_runs_the_blocks_in_forced_calls_only(warmup, most, complete):
    """Of 8 calls; with guidance for the conditional and the unconditional row."""
    cached = pipeline()(PROMPTS, range(8), recipe(FirstBlockCache(1e9, warmup, most)), batch_size=3)
    assert cached.nfe == 16
    assert (cached.cached.computed, cached.cached.saved) == (2 * (8 + 2 * complete), 2 * 2 * (8 - complete))
    assert cached.cached.nfe == pytest.approx(cached.cached.computed / 3)


def test_rows_of_guidance_and_the_second_network_have_caches_of_their_own():
    """The unconditional rows reuse what they computed, not what the conditional ones did."""
    pipe, (x, time, _) = pipeline(), inputs()
    condition = pipe.encode(PROMPTS[:3])
    null = pipe.null_condition().expand(3)
    both = type(condition).cat([condition, null])
    cache, doubled, times = StepCache(ALWAYS), torch.cat([x, x]), torch.cat([time, time])
    expected = pipe.backbone(doubled, times, both)
    cache.call(pipe.backbone, x, time, condition)
    cache.call(pipe.backbone, doubled, times, both)
    assert cache.saved == 3 * 2, "the new rows are computed"
    torch.testing.assert_close(cache.call(pipe.backbone, doubled, times, both), expected, atol=1e-5, rtol=0)
    weak = pipeline(depth=2).backbone
    torch.testing.assert_close(cache.call(weak, x, time, condition), weak(x, time, condition))
    cached = pipe(PROMPTS, range(8), recipe(ALWAYS, Auto(weak, 2.0)))
    assert (cached.cached.computed, cached.cached.saved) == (3 + 7 + 2 + 7, 7 * 2 + 7)
    assert cached.cached.nfe == pytest.approx(2 + 7 / 3 + 7 / 2)


def test_a_small_change_gives_a_small_error_and_a_larger_threshold_saves_more():
    pipe = pipeline()
    plain = pipe(PROMPTS, range(8), recipe(None, steps=16)).images
    found = [pipe(PROMPTS, range(8), recipe(FirstBlockCache(t), steps=16)) for t in (0.03, 0.1, 0.3)]
    errors = [float((one.images - plain).abs().mean()) for one in found]
    assert 0 < found[0].cached.saved < found[1].cached.saved < found[2].cached.saved
    assert errors[0] < errors[1] < errors[2]


def test_gradients_flow_through_reused_blocks():
    """At the same input a reuse has the gradients of the complete call that it repeats."""
    net, (x, time, condition) = woken(OWN["dit"]), inputs()
    cache = StepCache(ALWAYS)
    cache.call(net, x, time, condition)
    cache.call(net, x, time, condition).square().sum().backward()
    assert cache.saved == len(x) * (depth_of(net) - 1)
    reused = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    net(x, time, condition).square().sum().backward()
    assert reused.keys() == {name for name, p in net.named_parameters() if p.grad is not None}
    for name, p in net.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(reused[name], p.grad, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_cached_is_refused_in_one_line():
    for settings, fault in (
        ({"threshold": -0.1}, "cache.threshold=-0.1 must be 0"),
        ({"threshold": float("nan")}, "cache.threshold=nan"),
        ({"warmup_calls": 0}, "cache.warmup_calls=0"),
        ({"most_reuses": 0}, "most_reuses=0"),
    ):
        with pytest.raises(ValueError, match=fault):
            FirstBlockCache(**settings)
    pipe = pipeline()
    with pytest.raises(ValueError, match="cache and compile=true"):
        pipe.sample_in(compile=True).check(recipe(ALWAYS))
    pipe.sample_in(compile=False).backbone.forward = lambda x, time, condition: x
    for use in (pipe.check, lambda how: pipe(PROMPTS[:1], [0], how)):
        with pytest.raises(ValueError, match="cache: TextDiT does not let its blocks be run"):
            use(recipe(ALWAYS))
    with pytest.raises(ValueError, match="cache: function does not let"):
        pipeline().check(recipe(ALWAYS, Auto(lambda x, time, condition: x, 2.0)))
