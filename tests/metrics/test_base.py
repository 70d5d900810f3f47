"""What metrics remember of real pictures, and what they refuse."""

import pytest
import torch

from dit.metrics.frechet import FrechetDistance
from dit.metrics.inception_score import InceptionScore
from dit.metrics.kernel import CMMD, KernelDistance
from dit.metrics.manifold import DensityCoverage, PrecisionRecall
from dit.metrics.prompt_accuracy import PromptAccuracy

from .every import Pixels, drawn, every_metric

MADE, REAL, OTHER = drawn(30, seed=1, shift=0.3), drawn(40, seed=2), drawn(50, seed=3, spread=1.5)
MEASURED = [name for name, metric in every_metric(Pixels()).items() if metric.reference_split]


def shown(name, *real):
    """A metric that has judged `MADE` against these real pictures."""
    metric = every_metric(Pixels())[name]
    for images in real:
        metric.update(images, real=True)
    metric.update(MADE)
    metric.result()
    return metric


@pytest.mark.parametrize("name", MEASURED)
class TestReference:
    def test_pictures_shown_after_a_judgement_join_the_reference(self, name):
        metric = shown(name, REAL)
        metric.update(OTHER, real=True)
        assert metric.compute() == pytest.approx(shown(name, torch.cat([REAL, OTHER])).compute(), rel=1e-6)

    def test_nothing_is_left_of_a_reference_that_was_forgotten(self, name):
        metric = shown(name, REAL)
        metric.reset_reference()
        metric.update(OTHER, real=True)
        assert metric.compute() == shown(name, OTHER).compute()
        assert metric.compute() != shown(name, REAL).compute()

    def test_a_reference_that_is_loaded_takes_the_place_of_another(self, name):
        metric = shown(name, REAL)
        metric.load_reference(shown(name, OTHER).reference_state())
        assert metric.compute() == shown(name, OTHER).compute()

    def test_without_real_pictures_there_is_no_score(self, name):
        metric = every_metric(Pixels())[name]
        metric.update(MADE)
        with pytest.raises(ValueError, match="measures against real pictures, and none were shown"):
            metric.compute()

    def test_without_made_pictures_there_is_no_score(self, name):
        metric = every_metric(Pixels())[name]
        metric.update(REAL, real=True)
        with pytest.raises(ValueError, match="was shown no pictures to judge"):
            metric.compute()


class Layers(Pixels):
    """Two kinds of features, and a network of a name of its own."""

    def __init__(self, name="none"):
        super().__init__()
        self.dims, self.protocol = {"pool": 12, "half": 6}, {"network": name}

    def extract(self, images):
        pool = super().extract(images)["pool"]
        return {"pool": pool, "half": pool[:, :6]}


def test_a_reference_is_shared_only_where_network_layer_and_kind_are_the_same():
    one, other = Layers("one"), Layers("other")
    keys = [
        kind("it", extractor, layer).reference_key
        for kind in (FrechetDistance, KernelDistance)
        for extractor in (one, other)
        for layer in ("pool", "half")
    ]
    assert len(set(keys)) == 8
    assert FrechetDistance("that", one).reference_key == keys[0]
    assert CMMD("cmmd", one).reference_key == KernelDistance("kd", one).reference_key


@pytest.mark.parametrize(("make", "fault"), [
    (lambda: KernelDistance("kid", Pixels(), subset_size=1), "kid.subset_size=1 must be at least 2"),
    (lambda: KernelDistance("kid", Pixels(), subsets=0), "subsets=0 at least 1"),
    (lambda: InceptionScore("is", Pixels(), "pool", splits=0), "is.splits=0"),
    (lambda: InceptionScore("is", Pixels(), "pool", split_size=0), "split_size=0 must be at least 1"),
    (lambda: PrecisionRecall(Pixels(), k=0), "k=0 must be at least 1"),
    (lambda: DensityCoverage(Pixels(), k=0), "k=0 must be at least 1"),
    (lambda: FrechetDistance("fd", Pixels(), "spatial"), "layer=spatial: Pixels gives pool"),
])  # fmt: skip
def test_a_setting_without_a_meaning_is_refused(make, fault):
    with pytest.raises(ValueError, match=fault):
        make()


@pytest.mark.parametrize("images", [
    torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, 4, 4, dtype=torch.uint8),
], ids=["float", "grey", "one"])  # fmt: skip
@pytest.mark.parametrize("real", [False, True])
def test_what_is_no_batch_of_pictures_is_refused(images, real):
    with pytest.raises(ValueError, match=r"pictures must be \(B, 3, H, W\) uint8"):
        FrechetDistance("fd", Pixels()).update(images, real=real)


def test_a_column_whose_mean_depends_on_no_n_has_none_in_its_name():
    metric = PromptAccuracy(lambda images, prompts: {"any": torch.ones(len(prompts), dtype=torch.bool).numpy()})
    metric.update(MADE, ["a"] * 30)
    assert set(metric.compute()) == {"prompt_accuracy", "accuracy_any"}


def test_a_name_of_another_network_is_in_every_column():
    for metric in (PrecisionRecall(Pixels(), suffix="_dino"), DensityCoverage(Pixels(), suffix="_dino")):
        metric.update(REAL, real=True)
        metric.update(MADE)
        assert all(column.endswith("_dino_30") for column in metric.compute())
        assert set(metric.headlines) == {column.removesuffix("_30") for column in metric.compute()}
