"""The self-test finds every kind of broken metric that it speaks of, and none in a sound one."""

import pytest
import torch

from dit.encoders.reconstruction import shrunk
from dit.evaluation.selftest import faults_of, noisy
from dit.metrics.base import ImageMetric, MetricResult
from dit.metrics.manifold import PrecisionRecall

from ..metrics.every import Pixels


@pytest.fixture(scope="module")
def images():
    """Stripes a pixel wide, in three contrasts."""
    stripes = torch.tensor([-1, 1]).repeat(8).expand(12, 3, 16, 16)
    return (128 + torch.linspace(20, 60, 12)[:, None, None, None] * stripes).to(torch.uint8)


class Fixed(ImageMetric):
    """A distance that is a function of how far pictures are from those it was shown, and how blurred they are."""

    reference_split = "val"

    def __init__(self, answer):
        super().__init__()
        self.answer, self.headlines, self.real = answer, {"far": False}, None

    def update_real(self, images):
        self.real = images

    def reset_reference(self):
        super().reset_reference()
        self.real = None

    def update_samples(self, images, prompts):
        blur = 1 - float(images.double().diff(dim=3).abs().mean() / self.real.double().diff(dim=3).abs().mean())
        self.far = (images.double() - self.real.double()).abs().mean().item(), blur

    def compute_scores(self):
        return MetricResult({"far": self.answer(*self.far)}, {})


@pytest.mark.parametrize(("answer", "faults"), [
    (lambda off, blur: off, []),
    (lambda off, blur: off + 0.01, []),
    (lambda off, blur: -off, ["noise", "blur"]),
    (lambda off, blur: 0.0, ["noise", "blur"]),
    (lambda off, blur: off + 20, ["themselves"]),
    (lambda off, blur: off - 20, ["themselves"]),
    (lambda off, blur: off if blur < 0.1 else 1 - blur, ["blur"]),
    (lambda off, blur: off if blur > 0 else min(off, 20 - off / 4), ["noise"]),
])  # fmt: skip
def test_a_distance_must_be_nothing_at_first_and_grow_at_every_step(images, answer, faults):
    found = faults_of({"it": Fixed(answer)}, images, ["a"] * 12)
    assert [fault.split(" is ")[0].split(" (")[0].split()[-1] for fault in found] == faults


def test_it_resets_the_metrics(images):
    metric = Fixed(lambda off, blur: off)
    faults_of({"it": metric}, images, ["a"] * 12)
    assert metric.real is None
    assert metric.count_samples() == 0


class Agreement(ImageMetric):
    """The share of pictures whose prompt is its own, or what `answer` makes of it."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.headlines = answer, {"agrees": True}

    def update_samples(self, images, prompts):
        self.right = sum(f"{i}" == prompt for i, prompt in enumerate(prompts)) / len(prompts)

    def compute_scores(self):
        return MetricResult({"agrees": self.answer(self.right)}, {})


@pytest.mark.parametrize(("answer", "sound"), [(lambda s: s, True), (lambda s: 1 - s, False), (lambda s: 0.5, False)])
def test_agreement_must_fall_when_prompts_are_shuffled(images, answer, sound):
    found = faults_of({"it": Agreement(answer)}, images, [str(i) for i in range(12)])
    assert [fault.split(" is ")[0] for fault in found] == ([] if sound else ["agrees"])


@pytest.mark.parametrize("prompts", [["a"] * 12, [*"abcdefghijk", ""]], ids=["equal", "one is missing"])
def test_agreement_is_not_tested_without_prompts_that_differ(images, prompts):
    assert faults_of({"it": Agreement(lambda share: 0.5)}, images, prompts) == []


def test_shares_of_real_pictures_are_no_distances(images):
    assert faults_of({"it": PrecisionRecall(Pixels())}, images, ["a"] * 12) == []


def test_noise_and_blur_are_what_they_say(images):
    assert torch.equal(noisy(images, 16), noisy(images, 16))
    off = noisy(torch.full_like(images, 128), 16).double() - 128
    assert float(off.std()) == pytest.approx(16, rel=0.05)
    assert abs(float(off.mean())) < 1
    flat = torch.full_like(images, 77)
    assert torch.equal(shrunk(flat, 0.25), flat)
    assert shrunk(images, 0.5).shape == images.shape
    assert float(shrunk(images, 0.5).double().std(3).max()) < 0.2 * float(images.double().std(3).max())


class Aesthetics(ImageMetric):
    """A score that reads no prompt and no reference."""

    uses_prompts = False

    def __init__(self):
        super().__init__()
        self.headlines = {"aesthetics": True}
        self.add_state("bright", default=[], dist_reduce_fx="cat")

    def update_samples(self, images, prompts):
        self.keep("bright", self.judged(images, prompts))

    def judged(self, images, prompts):
        return images.double().mean((1, 2, 3))

    def compute_scores(self):
        bright = self.kept("bright")
        return MetricResult({"aesthetics": float(bright.mean())}, {"aesthetics": bright})


class Deaf(Aesthetics):
    """A score of agreement that does not use the prompts."""

    uses_prompts = True


def test_a_score_that_reads_no_prompt_and_no_reference_passes(images):
    prompts = [f"picture {i}" for i in range(12)]
    assert faults_of({"it": Aesthetics()}, images, prompts) == []
    assert len(faults_of({"it": Deaf()}, images, prompts)) == 1
