"""Properties of the feature metrics, and parity with other implementations on the same features."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dit.metrics import kernel, neighbours
from dit.metrics.frechet import FrechetDistance, Moments, distance_and_influences, frechet_distance, root_of
from dit.metrics.inception_score import InceptionScore
from dit.metrics.kernel import CMMD, KernelDistance
from dit.metrics.manifold import DensityCoverage, PrecisionRecall
from dit.metrics.nearest_train import NearestTrain

from .every import Pixels, every_metric, pictures_to_features, random_pictures

NAMES = list(every_metric(Pixels()))
REAL, GENERATED = random_pictures(50, seed=1), random_pictures(40, seed=2, spread=1.3, shift=0.4)


def result_of(metric, generated=GENERATED, real=REAL):
    metric.reset()
    metric.reset_reference()
    for part in real.split(16):
        metric.update(part, real=True)
    for part in generated.split(16):
        metric.update(part)
    return metric.result()


def only(scores):
    [value] = scores.values()
    return value


def features(*pictures):
    return [pictures_to_features(x).double() for x in pictures]


@pytest.mark.parametrize(("many", "few"), [(90, 80), (90, 20), (20, 90), (20, 15), (2, 2), (41, 41)])
def test_the_frechet_distance_is_precise_at_every_rank(many, few):
    """With S1 = X'X and S2 = Y'Y the trace of the root is the sum of the singular values of X Y'."""
    draw = torch.Generator().manual_seed(0)
    real = torch.randn(many, 40, generator=draw, dtype=torch.float64)
    generated = torch.randn(few, 40, generator=draw, dtype=torch.float64) * torch.arange(1, 41) ** -1.0 + 1
    x, y = ((f - f.mean(0)) / (len(f) - 1) ** 0.5 for f in (real, generated))
    roots = torch.linalg.svdvals(x @ y.T).sum()
    expected = (real.mean(0) - generated.mean(0)).square().sum() + x.square().sum() + y.square().sum() - 2 * roots
    sums = [Moments.zero(40) for _ in range(2)]
    for moments, f in zip(sums, (real, generated), strict=True):
        moments.add(f)
    distance, influences = distance_and_influences(sums[0], root_of(sums[0].gaussian()[1]), sums[1], generated)
    assert distance == pytest.approx(float(expected), rel=1e-9)
    assert frechet_distance(*sums) == pytest.approx(float(expected), rel=1e-7)
    assert influences.isfinite().all()


def test_kernel_distance_equals_torch_fidelity():
    from torch_fidelity.metric_kid import kid_features_to_metric

    theirs = kid_features_to_metric(*features(GENERATED, REAL), kid_subsets=100, kid_subset_size=20, verbose=False)
    ours = only(result_of(KernelDistance("kid", Pixels(), subset_size=20)).scores)
    assert ours == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)


def test_the_kernel_distance_of_few_pictures_is_the_unbiased_estimate_of_all():
    from torch_fidelity.metric_kid import kid_features_to_metric

    whole = result_of(KernelDistance("kid", Pixels()), GENERATED, REAL[:40])
    theirs = kid_features_to_metric(*features(GENERATED, REAL[:40]), kid_subsets=1, kid_subset_size=40, verbose=False)
    assert only(whole.scores) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    few, all_at_once = (result_of(KernelDistance("kid", Pixels(), subset_size=size)) for size in (45, 1000))
    assert few.scores == all_at_once.scores, "50 real pictures give subsets of 45, and 40 generated ones do not"
    distances = [
        only(result_of(KernelDistance("kid", Pixels()), random_pictures(30, seed=s), REAL).scores) for s in range(3, 43)
    ]
    assert abs(np.mean(distances)) < 3 * np.std(distances) / 40**0.5 < np.std(distances), "unbiased for few pictures"


@pytest.mark.parametrize("rows", [kernel.ROWS, 7])
def test_cmmd_is_the_formula_of_its_paper(rows, monkeypatch):
    monkeypatch.setattr(kernel, "ROWS", rows)  # the whole matrix, or in blocks of it
    x, y = (F.normalize(f) for f in features(GENERATED, REAL))
    kernels = [torch.exp(-(torch.cdist(a, b) ** 2) / (2 * 10.0**2)).mean() for a, b in ((x, x), (y, y), (x, y))]
    expected = 1000 * (kernels[0] + kernels[1] - 2 * kernels[2])
    assert only(result_of(CMMD("cmmd", Pixels())).scores) == pytest.approx(float(expected), rel=1e-6)


def test_inception_score_equals_torch_fidelity_and_has_adms_splits():
    from torch_fidelity.metric_isc import isc_features_to_metric

    [logits] = features(GENERATED)
    theirs = isc_features_to_metric(logits)["inception_score_mean"]
    assert only(result_of(InceptionScore("is", Pixels(), "pool")).scores) == pytest.approx(theirs, rel=1e-9)
    splits = [isc_features_to_metric(x, 1, False)["inception_score_mean"] for x in logits.split(15)]
    ours = only(result_of(InceptionScore("is", Pixels(), "pool", split_size=15)).scores)
    assert ours == pytest.approx(np.mean(splits), rel=1e-9)


def test_a_class_with_probability_0_does_not_change_the_score():
    logits = torch.tensor([[0.0, 0, -1e4], [9, 0, -1e4]]).double()
    metric = InceptionScore("is", Pixels(), "pool", splits=1)
    metric.features, metric.index = [logits], [torch.arange(2)]
    with_it = only(metric.result().scores)
    metric.features = [logits[:, :2]]
    assert with_it == pytest.approx(only(metric.result().scores), rel=1e-9)


@pytest.mark.parametrize("entries", [neighbours.ENTRIES, 70])
def test_precision_and_recall_equal_torch_fidelity(entries, monkeypatch):
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    monkeypatch.setattr(neighbours, "ENTRIES", entries)  # one block, or a row at a time
    scores = result_of(PrecisionRecall(Pixels())).scores
    assert tuple(scores.values()) == pytest.approx(calculate_precision_recall_full(*features(GENERATED, REAL)))
    assert 0 < scores["precision_40"] < 1
    assert 0 < scores["recall_40"] < 1


@pytest.mark.parametrize("entries", [neighbours.ENTRIES, 70])
def test_density_and_coverage_are_the_formulas_of_their_paper(entries, monkeypatch):
    """Naeem et al. 2020, eq. 4 and 5."""
    monkeypatch.setattr(neighbours, "ENTRIES", entries)
    generated, real = (f.numpy() for f in features(GENERATED, REAL))
    distances = np.linalg.norm(real[:, None] - generated[None], axis=2)
    radius = np.sort(np.linalg.norm(real[:, None] - real[None], axis=2), axis=1)[:, 5]
    inside = distances < radius[:, None]
    expected = {"density_40": inside.sum() / (5 * len(generated)), "coverage_40": inside.any(1).mean()}
    assert result_of(DensityCoverage(Pixels())).scores == pytest.approx(expected)


def test_distances_of_pictures_to_themselves_are_zero():
    x = (
        torch.randn(50, 64, generator=torch.Generator().manual_seed(0)) + 100
    )  # large norms, where a difference of squares is imprecise
    [block] = neighbours.squared_distances(x, x)
    assert (block.diagonal() == 0).all()
    assert torch.allclose(block, torch.cdist(x.double(), x.double()) ** 2, atol=1e-8)


def test_copies_are_counted_and_new_pictures_are_not():
    train, metric = random_pictures(2000, seed=5), NearestTrain("nearest", Pixels())
    fresh = result_of(metric, random_pictures(2000, seed=6), train)
    assert 0.003 < fresh.scores["nearest_copies"] < 0.02  # 1 % by chance
    half = torch.cat([train[:300], random_pictures(300, seed=7)])
    found = result_of(metric, half, train)
    assert 0.5 <= found.scores["nearest_copies"] < 0.52
    assert found.each["nearest_copies"][:300].all()
    assert (found.each["nearest"][:300] < 1e-6).all()
    near = torch.cdist(*(F.normalize(f) for f in features(random_pictures(2000, seed=6), train))).amin(1)
    assert torch.allclose(fresh.each["nearest"], near, atol=1e-7)
    assert fresh.scores["nearest_median"] == pytest.approx(float(near.quantile(0.5)), abs=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_of_the_parts_is_the_score_and_parts_are_in_order(name):
    metric = every_metric(Pixels())[name]
    whole = result_of(metric)
    assert set(whole.each) <= set(whole.scores)
    assert whole.each
    for column, parts in whole.each.items():
        assert parts.shape == (len(GENERATED),)
        assert parts.dtype in (torch.bool, torch.float64)
        assert float(parts.double().mean()) == pytest.approx(whole.scores[column], rel=1e-9)
    metric.reset()
    rows = torch.randperm(len(GENERATED), generator=torch.Generator().manual_seed(0)).tolist()
    metric.update(GENERATED[rows], index=rows)
    for column, parts in metric.result().each.items():
        assert torch.allclose(parts.double(), whole.each[column].double(), rtol=1e-6)


@pytest.mark.parametrize("name", ["fd", "kd", "cmmd", "score"])
def test_parts_predict_the_score_without_a_picture(name):
    """The jackknife's pseudo-values, N score - (N - 1) score without it, are the parts to first order."""
    metric = every_metric(Pixels())[name]
    generated = random_pictures(400, seed=8, spread=1.3, shift=0.4)
    whole, n = result_of(metric, generated), len(generated)
    without = torch.tensor(
        [only(result_of(metric, torch.cat([generated[:i], generated[i + 1 :]])).scores) for i in range(30)]
    )
    both = torch.stack([n * only(whole.scores) - (n - 1) * without, only(whole.each)[:30]]).double()
    assert torch.corrcoef(both)[0, 1] > 0.99
    slope = float(both[0].std() / both[1].std())
    assert slope == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_features_that_are_not_finite_give_a_one_line_error(name, monkeypatch):
    monkeypatch.setattr(Pixels, "extract", lambda self, images: {"pool": torch.full((len(images), 12), float("nan"))})
    with pytest.raises(ValueError, match=r"^\w+: the extractor returns features that are not finite$"):
        every_metric(Pixels())[name].update(GENERATED)


@pytest.mark.parametrize("name", NAMES)
def test_a_collapsed_model_gives_a_warning_and_a_score(name, capsys):
    result_of(every_metric(Pixels())[name], torch.cat([GENERATED[:20], GENERATED[:20]]))
    assert "identical features" not in capsys.readouterr().err, "only some are equal"
    scores = result_of(every_metric(Pixels())[name], GENERATED[:1].expand(30, -1, -1, -1)).scores
    assert all(np.isfinite(value) for value in scores.values())
    assert "all 30 pictures have identical features" in capsys.readouterr().err
    if name == "fd":  # the distance of a Gaussian to a point
        real, [point] = pictures_to_features(REAL).double(), pictures_to_features(GENERATED[:1]).double()
        expected = (real.mean(0) - point).square().sum() + real.var(0).sum()
        assert scores["fd_30"] == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(("make", "count", "message"), [
    (lambda: KernelDistance("kid", Pixels()), 1, "kid of 1 generated and 50 real pictures"),
    (lambda: PrecisionRecall(Pixels()), 3, "precision of 3 generated and 50 real pictures: k=3 needs at least 4"),
    (lambda: DensityCoverage(Pixels()), 5, "density of 5 generated and 50 real pictures: k=5 needs at least 6"),
    (lambda: InceptionScore("is", Pixels(), "pool"), 9, "is of 9 pictures: splits=10"),
    (lambda: FrechetDistance("fd", Pixels()), 1, "at least 2 pictures"),
])  # fmt: skip
def test_too_few_pictures_are_refused(make, count, message):
    with pytest.raises(ValueError, match=message):
        result_of(make(), GENERATED[:count])


def test_columns_of_biased_metrics_contain_the_count():
    columns = {name: set(result_of(metric).scores) for name, metric in every_metric(Pixels()).items()}
    assert columns["fd"] == {"fd_40"}
    assert columns["kd"] == {"kd"}
    assert columns["cmmd"] == {"cmmd_40"}
    assert columns["score"] == {"score_40"}
    assert columns["precision_recall"] == {"precision_40", "recall_40"}
    assert columns["density_coverage"] == {"density_40", "coverage_40"}
    assert columns["nearest"] == {"nearest", "nearest_median", "nearest_copies"}
