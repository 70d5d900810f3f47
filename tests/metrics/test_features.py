"""The laws of the metrics of features, and their agreement with other people's code on the same features."""

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

from .every import Pixels, drawn, every_metric, pictures_to_features

NAMES = list(every_metric(Pixels()))
REAL, MADE = drawn(50, seed=1), drawn(40, seed=2, spread=1.3, shift=0.4)


def judged(metric, made=MADE, real=REAL):
    metric.reset()
    metric.reset_reference()
    for part in real.split(16):
        metric.update(part, real=True)
    for part in made.split(16):
        metric.update(part)
    return metric.result()


def only(scores):
    [value] = scores.values()
    return value


def features(*pictures):
    return [pictures_to_features(x).double() for x in pictures]


@pytest.mark.parametrize(("many", "few"), [(90, 80), (90, 20), (20, 90), (20, 15), (2, 2), (41, 41)])
def test_the_frechet_distance_keeps_its_digits_at_every_rank(many, few):
    """With S1 = X'X and S2 = Y'Y the trace of the root is the sum of the singular values of X Y', which are few."""
    draw = torch.Generator().manual_seed(0)
    real = torch.randn(many, 40, generator=draw, dtype=torch.float64)
    made = torch.randn(few, 40, generator=draw, dtype=torch.float64) * torch.arange(1, 41) ** -1.0 + 1
    x, y = ((f - f.mean(0)) / (len(f) - 1) ** 0.5 for f in (real, made))
    roots = torch.linalg.svdvals(x @ y.T).sum()
    expected = (real.mean(0) - made.mean(0)).square().sum() + x.square().sum() + y.square().sum() - 2 * roots
    sums = [Moments.zero(40) for _ in range(2)]
    for moments, f in zip(sums, (real, made), strict=True):
        moments.add(f)
    distance, influences = distance_and_influences(sums[0], root_of(sums[0].gaussian()[1]), sums[1], made)
    assert distance == pytest.approx(float(expected), rel=1e-9)
    assert frechet_distance(*sums) == pytest.approx(float(expected), rel=1e-7)
    assert influences.isfinite().all()


def test_kernel_distance_equals_torch_fidelity():
    from torch_fidelity.metric_kid import kid_features_to_metric

    theirs = kid_features_to_metric(*features(MADE, REAL), kid_subsets=100, kid_subset_size=20, verbose=False)
    ours = only(judged(KernelDistance("kid", Pixels(), subset_size=20)).scores)
    assert ours == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)


def test_the_kernel_distance_of_few_pictures_is_the_unbiased_estimate_of_all():
    from torch_fidelity.metric_kid import kid_features_to_metric

    whole = judged(KernelDistance("kid", Pixels()), MADE, REAL[:40])
    theirs = kid_features_to_metric(*features(MADE, REAL[:40]), kid_subsets=1, kid_subset_size=40, verbose=False)
    assert only(whole.scores) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    few, all_at_once = (judged(KernelDistance("kid", Pixels(), subset_size=size)) for size in (45, 1000))
    assert few.scores == all_at_once.scores, "50 real pictures give subsets of 45, and 40 made ones do not"
    alike = [only(judged(KernelDistance("kid", Pixels()), drawn(30, seed=s), REAL).scores) for s in range(3, 43)]
    assert abs(np.mean(alike)) < 3 * np.std(alike) / 40**0.5 < np.std(alike), "no bias though there are few"


@pytest.mark.parametrize("rows", [kernel.ROWS, 7])
def test_cmmd_is_the_formula_of_its_paper(rows, monkeypatch):
    monkeypatch.setattr(kernel, "ROWS", rows)  # the whole matrix, or in blocks of it
    x, y = (F.normalize(f) for f in features(MADE, REAL))
    kernels = [torch.exp(-(torch.cdist(a, b) ** 2) / (2 * 10.0**2)).mean() for a, b in ((x, x), (y, y), (x, y))]
    expected = 1000 * (kernels[0] + kernels[1] - 2 * kernels[2])
    assert only(judged(CMMD("cmmd", Pixels())).scores) == pytest.approx(float(expected), rel=1e-6)


def test_inception_score_equals_torch_fidelity_and_has_adms_splits():
    from torch_fidelity.metric_isc import isc_features_to_metric

    [logits] = features(MADE)
    theirs = isc_features_to_metric(logits)["inception_score_mean"]
    assert only(judged(InceptionScore("is", Pixels(), "pool")).scores) == pytest.approx(theirs, rel=1e-9)
    splits = [isc_features_to_metric(x, 1, False)["inception_score_mean"] for x in logits.split(15)]
    ours = only(judged(InceptionScore("is", Pixels(), "pool", split_size=15)).scores)
    assert ours == pytest.approx(np.mean(splits), rel=1e-9)


def test_a_class_that_no_picture_can_be_of_costs_nothing():
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
    scores = judged(PrecisionRecall(Pixels())).scores
    assert tuple(scores.values()) == pytest.approx(calculate_precision_recall_full(*features(MADE, REAL)))
    assert 0 < scores["precision_40"] < 1
    assert 0 < scores["recall_40"] < 1


@pytest.mark.parametrize("entries", [neighbours.ENTRIES, 70])
def test_density_and_coverage_are_the_formulas_of_their_paper(entries, monkeypatch):
    """Naeem et al. 2020, eq. 4 and 5, word by word."""
    monkeypatch.setattr(neighbours, "ENTRIES", entries)
    made, real = (f.numpy() for f in features(MADE, REAL))
    apart = np.linalg.norm(real[:, None] - made[None], axis=2)
    radius = np.sort(np.linalg.norm(real[:, None] - real[None], axis=2), axis=1)[:, 5]
    inside = apart < radius[:, None]
    expected = {"density_40": inside.sum() / (5 * len(made)), "coverage_40": inside.any(1).mean()}
    assert judged(DensityCoverage(Pixels())).scores == pytest.approx(expected)


def test_distances_of_pictures_to_themselves_are_zero():
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)) + 100  # where a difference of squares is rough
    [block] = neighbours.squared_distances(x, x)
    assert (block.diagonal() == 0).all()
    assert torch.allclose(block, torch.cdist(x.double(), x.double()) ** 2, atol=1e-8)


def test_copies_are_found_and_fresh_pictures_are_not_suspected():
    train, metric = drawn(2000, seed=5), NearestTrain("nearest", Pixels())
    fresh = judged(metric, drawn(2000, seed=6), train)
    assert 0.003 < fresh.scores["nearest_copies"] < 0.02  # the hundredth that chance gives
    half = torch.cat([train[:300], drawn(300, seed=7)])
    found = judged(metric, half, train)
    assert 0.5 <= found.scores["nearest_copies"] < 0.52
    assert found.each["nearest_copies"][:300].all()
    assert (found.each["nearest"][:300] < 1e-6).all()
    near = torch.cdist(*(F.normalize(f) for f in features(drawn(2000, seed=6), train))).amin(1)
    assert torch.allclose(fresh.each["nearest"], near, atol=1e-7)
    assert fresh.scores["nearest_median"] == pytest.approx(float(near.quantile(0.5)), abs=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_parts_make_the_score_and_come_in_order(name):
    metric = every_metric(Pixels())[name]
    whole = judged(metric)
    assert set(whole.each) <= set(whole.scores)
    assert whole.each
    for column, parts in whole.each.items():
        assert parts.shape == (len(MADE),)
        assert parts.dtype in (torch.bool, torch.float64)
        assert float(parts.double().mean()) == pytest.approx(whole.scores[column], rel=1e-9)
    metric.reset()
    rows = torch.randperm(len(MADE), generator=torch.Generator().manual_seed(0)).tolist()
    metric.update(MADE[rows], index=rows)
    for column, parts in metric.result().each.items():
        assert torch.allclose(parts.double(), whole.each[column].double(), rtol=1e-6)


@pytest.mark.parametrize("name", ["fd", "kd", "cmmd", "score"])
def test_parts_foretell_the_score_without_a_picture(name):
    """The jackknife's pseudo-values, N score - (N - 1) score without it, are the parts to first order."""
    metric = every_metric(Pixels())[name]
    made = drawn(400, seed=8, spread=1.3, shift=0.4)
    whole, n = judged(metric, made), len(made)
    without = torch.tensor([only(judged(metric, torch.cat([made[:i], made[i + 1 :]])).scores) for i in range(30)])
    told = torch.stack([n * only(whole.scores) - (n - 1) * without, only(whole.each)[:30]]).double()
    assert torch.corrcoef(told)[0, 1] > 0.99
    slope = float(told[0].std() / told[1].std())
    assert slope == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_features_that_are_not_finite_are_one_line(name, monkeypatch):
    monkeypatch.setattr(Pixels, "extract", lambda self, images: {"pool": torch.full((len(images), 12), float("nan"))})
    with pytest.raises(ValueError, match=r"^\w+: the extractor gives features that are not finite$"):
        every_metric(Pixels())[name].update(MADE)


@pytest.mark.parametrize("name", NAMES)
def test_a_collapsed_model_is_told_of_and_scored(name, capsys):
    judged(every_metric(Pixels())[name], torch.cat([MADE[:20], MADE[:20]]))
    assert "the very same features" not in capsys.readouterr().err, "though some are"
    scores = judged(every_metric(Pixels())[name], MADE[:1].expand(30, -1, -1, -1)).scores
    assert all(np.isfinite(value) for value in scores.values())
    assert "all 30 pictures have the very same features" in capsys.readouterr().err
    if name == "fd":  # the distance of a Gaussian to a point
        real, [point] = pictures_to_features(REAL).double(), pictures_to_features(MADE[:1]).double()
        expected = (real.mean(0) - point).square().sum() + real.var(0).sum()
        assert scores["fd_30"] == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(("make", "made", "told"), [
    (lambda: KernelDistance("kid", Pixels()), 1, "kid of 1 made and 50 real pictures"),
    (lambda: PrecisionRecall(Pixels()), 3, "precision of 3 made and 50 real pictures: k=3 needs at least 4"),
    (lambda: DensityCoverage(Pixels()), 5, "density of 5 made and 50 real pictures: k=5 needs at least 6"),
    (lambda: InceptionScore("is", Pixels(), "pool"), 9, "is of 9 pictures: splits=10"),
    (lambda: FrechetDistance("fd", Pixels()), 1, "at least 2 pictures"),
])  # fmt: skip
def test_too_few_pictures_are_one_line(make, made, told):
    with pytest.raises(ValueError, match=told):
        judged(make(), MADE[:made])


def test_names_say_n_where_n_biases():
    columns = {name: set(judged(metric).scores) for name, metric in every_metric(Pixels()).items()}
    assert columns["fd"] == {"fd_40"}
    assert columns["kd"] == {"kd"}
    assert columns["cmmd"] == {"cmmd_40"}
    assert columns["score"] == {"score_40"}
    assert columns["precision_recall"] == {"precision_40", "recall_40"}
    assert columns["density_coverage"] == {"density_40", "coverage_40"}
    assert columns["nearest"] == {"nearest", "nearest_median", "nearest_copies"}
