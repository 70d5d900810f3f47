"""The reference of metrics, and the inputs they refuse."""

import pytest
import torch

from dit.metrics.frechet import FrechetDistance
from dit.metrics.inception_score import InceptionScore
from dit.metrics.kernel import CMMD, KernelDistance
from dit.metrics.manifold import DensityCoverage, PrecisionRecall
from dit.metrics.prompt_accuracy import PromptAccuracy

from .every import Pixels, every_metric, random_pictures

GENERATED, REAL, OTHER = (
    random_pictures(30, seed=1, shift=0.3),
    random_pictures(40, seed=2),
    random_pictures(50, seed=3, spread=1.5),
)
MEASURED = [name for name, metric in every_metric(Pixels()).items() if metric.reference_split]


def scored(name, *real):
    """Returns a metric after scoring `GENERATED` against these real pictures."""
    metric = every_metric(Pixels())[name]
    for images in real:
        metric.update(images, real=True)
    metric.update(GENERATED)
    metric.result()
    return metric


@pytest.mark.parametrize("name", MEASURED)
class TestReference:
    def test_real_pictures_added_after_a_result_join_the_reference(self, name):
        metric = scored(name, REAL)
        metric.update(OTHER, real=True)
        assert metric.compute() == pytest.approx(scored(name, torch.cat([REAL, OTHER])).compute(), rel=1e-6)

    def test_reset_reference_removes_all_real_pictures(self, name):
        metric = scored(name, REAL)
        metric.reset_reference()
        metric.update(OTHER, real=True)
        assert metric.compute() == scored(name, OTHER).compute()
        assert metric.compute() != scored(name, REAL).compute()

    def test_a_loaded_reference_replaces_the_old_one(self, name):
        metric = scored(name, REAL)
        metric.load_reference(scored(name, OTHER).reference_state())
        assert metric.compute() == scored(name, OTHER).compute()

    def test_without_real_pictures_there_is_no_score(self, name):
        metric = every_metric(Pixels())[name]
        metric.update(GENERATED)
        with pytest.raises(ValueError, match="needs real pictures, and has none"):
            metric.compute()

    def test_without_generated_pictures_there_is_no_score(self, name):
        metric = every_metric(Pixels())[name]
        metric.update(REAL, real=True)
        with pytest.raises(ValueError, match="has no pictures to score"):
            metric.compute()


class Layers(Pixels):
    """Two layers of features, and a network name."""

    def __init__(self, name="none"):
        super().__init__()
        self.dims, self.protocol = {"pool": 12, "half": 6}, {"network": name}

    def extract(self, images):
        pool = super().extract(images)["pool"]
        return {"pool": pool, "half": pool[:, :6]}


def test_references_are_shared_only_with_equal_network_layer_and_state():
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
    (lambda: FrechetDistance("fd", Pixels(), "spatial"), "layer=spatial: Pixels has pool"),
])  # fmt: skip
def test_an_invalid_setting_is_refused(make, fault):
    with pytest.raises(ValueError, match=fault):
        make()


@pytest.mark.parametrize("images", [
    torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, 4, 4, dtype=torch.uint8),
], ids=["float", "grey", "one"])  # fmt: skip
@pytest.mark.parametrize("real", [False, True])
def test_other_shapes_and_dtypes_are_refused(images, real):
    with pytest.raises(ValueError, match=r"pictures must be \(B, 3, H, W\) uint8"):
        FrechetDistance("fd", Pixels()).update(images, real=real)


def test_columns_of_unbiased_metrics_have_no_count_in_their_names():
    metric = PromptAccuracy(lambda images, prompts: {"any": torch.ones(len(prompts), dtype=torch.bool).numpy()})
    metric.update(GENERATED, ["a"] * 30)
    assert set(metric.compute()) == {"prompt_accuracy", "accuracy_any"}


def test_the_suffix_ends_every_column():
    for metric in (PrecisionRecall(Pixels(), suffix="_dino"), DensityCoverage(Pixels(), suffix="_dino")):
        metric.update(REAL, real=True)
        metric.update(GENERATED)
        assert all(column.endswith("_dino_30") for column in metric.compute())
        assert set(metric.headlines) == {column.removesuffix("_30") for column in metric.compute()}
