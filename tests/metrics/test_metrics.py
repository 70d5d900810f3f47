import copy
import logging

import numpy as np
import pytest
import torch

from dit.data.shapes import Shapes
from dit.data.shapes_checker import ShapesChecker
from dit.metrics.base import short_count
from dit.metrics.clip import ClipScore
from dit.metrics.extractors import Inception, OpenClip, open_clip_model
from dit.metrics.frechet import FrechetDistance, Moments, distance_and_influences, frechet_distance, root_of
from dit.metrics.prompt_accuracy import PromptAccuracy


def moments(features):
    m = Moments.zero(features.shape[1])
    for part in features.split(37):
        m.add(part)
    return m


def test_frechet_distance_equals_torch_fidelity():
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    draw = torch.Generator().manual_seed(0)
    a = torch.randn(300, 24, generator=draw) @ torch.randn(24, 24, generator=draw)
    b = torch.randn(200, 24, generator=draw) + 0.3
    theirs = fid_statistics_to_metric(*(fid_features_to_statistics(x) for x in (a, b)), verbose=False)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)


def test_frechet_distance_of_gaussians_is_exact():
    """Two sets with known moments: |m|^2 + sum (s1 - s2)^2 for commuting covariances."""
    draw = np.random.default_rng(0).normal(size=(5000, 6))
    white = (draw - draw.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(draw.T))).T
    s1, s2, shift = np.array([1, 2, 3, 1, 1, 2.0]), np.array([2, 2, 1, 1, 3, 2.0]), np.arange(6) / 3
    a, b = torch.from_numpy(white * s1), torch.from_numpy(white * s2 + shift)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(
        (shift**2).sum() + ((s1 - s2) ** 2).sum(), rel=1e-6
    )
    assert abs(frechet_distance(moments(a), moments(a))) < 1e-6


def test_fewer_than_two_pictures_are_refused():
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(moments(torch.randn(1, 3)), moments(torch.randn(9, 3)))


@pytest.fixture(scope="module")
def shapes():
    source = Shapes("val", 400)
    return torch.from_numpy(source.images(np.arange(400))), list(source.captions)


def test_fd_shapes_is_near_zero_on_real_pictures_and_grows_with_blur_and_noise(shapes):
    images, captions = shapes
    metric = FrechetDistance("fd_shapes", open_clip_model("shapes_clip"))
    metric.update(images[:200], real=True)

    def score(pictures):
        metric.reset()
        for part in pictures.split(64):
            metric.update(part, captions[: len(part)])
        return metric.compute()["fd_shapes_200"]

    assert abs(score(images[:200])) < 1e-4 * score(255 - images[:200])
    blurred = [torch.nn.functional.avg_pool2d(images[200:].float(), k, 1, k // 2) for k in (1, 3, 5)]
    scores = [score(x.round().clamp(0, 255).to(torch.uint8)) for x in blurred]
    assert scores == sorted(scores)
    noise = torch.randn(200, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    scores = [score((images[200:] + s * noise).round().clamp(0, 255).to(torch.uint8)) for s in (0, 15, 40)]
    assert scores == sorted(scores)


def test_without_parts_the_distance_is_the_same_and_no_features_are_kept(shapes):
    images = shapes[0]
    found = {}
    for parts in (True, False):
        metric = FrechetDistance("fd", open_clip_model("shapes_clip"), parts=parts)
        metric.update(images[:200], real=True)
        metric.update(images[200:])
        found[parts] = metric.result()
    assert found[True].scores["fd_200"] == pytest.approx(found[False].scores["fd_200"], rel=1e-9)
    assert len(found[True].each["fd_200"]) == 200
    assert found[False].each == {}
    assert metric.features == []


def test_clip_shapes_prefers_true_captions(shapes):
    images, captions = shapes
    metric = ClipScore("clip_shapes", open_clip_model("shapes_clip"))

    def cosines(pictures, texts):
        metric.reset()
        metric.update(pictures, texts)
        return metric.result().each["clip_shapes"]

    for word, other in (("large", "small"), ("red", "green"), ("star", "circle"), ("black", "white")):
        rows = [i for i, c in enumerate(captions) if word in c]
        true, swapped = (cosines(images[rows], [captions[i].replace(word, w) for i in rows]) for w in (word, other))
        assert (true > swapped).double().mean() > 0.9, f"{word} against {other}"
    assert metric.compute()["clip_shapes"] == pytest.approx(float(swapped.mean()), abs=1e-9)


@pytest.mark.parametrize("given", [{"prompts": ["a red star"]}, {"index": [0]}])
def test_each_picture_has_its_own_prompt_and_place(shapes, given):
    metric = ClipScore("clip", open_clip_model("shapes_clip"))
    with pytest.raises(ValueError, match=r"^2 pictures have 1 (prompts|index); give one for each picture$"):
        metric.update(shapes[0][:2], **given)


@pytest.mark.parametrize("prompts", [None, ["a red star", ""]])
def test_a_picture_without_a_prompt_is_refused(shapes, prompts):
    with pytest.raises(ValueError, match=r"^clip: some pictures have no prompt"):
        ClipScore("clip", open_clip_model("shapes_clip")).update(shapes[0][:2], prompts)


def test_the_extractor_stays_in_eval_mode_when_the_surrounding_module_trains():
    around = torch.nn.ModuleDict({"fd": FrechetDistance("fd", open_clip_model("shapes_clip"))}).train()
    assert not any(module.training for module in around["fd"].extractor.modules())


def test_both_scales_of_the_clip_score(shapes):
    images, captions = shapes
    metric = ClipScore("clip", open_clip_model("shapes_clip"), prefix="", hessel=True)
    metric.update(images[:20], captions[1:21])
    hundred, hessel = metric.result().each.values()
    assert torch.allclose(hessel, 2.5 * hundred.clamp(min=0) / 100)
    assert set(metric.compute()) == {"clip", "clip_hessel"}


def test_prompt_accuracy_counts_whole_and_parts(shapes):
    images, captions = shapes
    metric = PromptAccuracy(ShapesChecker())
    metric.update(images[:3], captions[:3])
    metric.update(
        images[3:4],
        [captions[3].replace("a large", "a tiny").replace("a small", "a large").replace("tiny", "small")],
    )
    scores = metric.compute()
    assert scores["prompt_accuracy"] == scores["accuracy_size"] == 0.75
    assert scores["accuracy_colour"] == scores["accuracy_shape"] == scores["accuracy_background"] == 1


def test_parts_come_in_the_order_of_the_index(shapes):
    images, captions = shapes
    one, other = (ClipScore("clip", open_clip_model("shapes_clip")) for _ in range(2))
    one.update(images[:20], captions[:20])
    for rows in (range(1, 20, 2), range(0, 20, 2)):
        other.update(images[list(rows)], [captions[i] for i in rows], rows)
    assert torch.allclose(one.result().each["clip"], other.result().each["clip"], atol=1e-4)


def test_short_count():
    assert [short_count(n) for n in (100, 1000, 2500, 50000, 50001)] == ["100", "1k", "2500", "50k", "50001"]


def test_a_batch_is_extracted_once(shapes, monkeypatch):
    extractor, batch_sizes = open_clip_model("shapes_clip"), []
    extract = OpenClip.extract
    monkeypatch.setattr(
        OpenClip, "extract", lambda self, images: batch_sizes.append(len(images)) or extract(self, images)
    )
    batch = shapes[0][300:310].clone()
    before = extractor(batch)["pool"].clone()
    assert torch.equal(before, extractor(batch)["pool"])
    assert batch_sizes == [10]
    batch[0] = 255 - batch[0]  # in place: the cached features are outdated
    assert not torch.equal(before[0], extractor(batch)["pool"][0])


def test_few_pictures_by_the_gram_matrix_are_the_same_distance():
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(300, 24, generator=draw) @ torch.randn(24, 24, generator=draw)
    b = torch.randn(11, 24, generator=draw)
    root = root_of(moments(a).gaussian()[1])
    gram, influences = distance_and_influences(moments(a), root, moments(b), b)
    assert gram == pytest.approx(frechet_distance(moments(a), moments(b)), rel=1e-5)
    assert abs(influences.mean()) < 1e-9


def test_influences_predict_the_standard_deviation_of_the_distance():
    """The delta method against 300 distances of fresh samples, and against a derivative by a weight."""
    draw = torch.Generator().manual_seed(0)
    root = torch.randn(8, 8, generator=draw)
    real = moments(torch.randn(20000, 8, generator=draw))
    fresh = [torch.randn(500, 8, generator=draw) @ root + 0.2 for _ in range(300)]
    root1 = root_of(real.gaussian()[1])

    def influence(x):
        return distance_and_influences(real, root1, moments(x), x)[1]

    spread = torch.tensor([frechet_distance(real, moments(x)) for x in fresh]).std()
    predicted = torch.tensor([influence(x).std() / len(x) ** 0.5 for x in fresh[:20]]).mean()
    assert predicted == pytest.approx(float(spread), rel=0.15)
    x = fresh[0].double()
    parts = influence(x)
    assert abs(parts.mean()) < 1e-9
    without = frechet_distance(real, moments(x[1:]))
    assert frechet_distance(real, moments(x)) - without == pytest.approx(float(parts[0]) / len(x), rel=0.05)


@pytest.mark.parametrize(("real", "n"), [(300, 60), (300, 14), (12, 60), (12, 14)], ids=str)
def test_an_influence_is_the_derivative_by_a_picture_s_weight(real, n):
    """For more or fewer pictures than dimensions on either side, by central differences: if the weight of picture x
    increases by e, mean and covariance move by e (x - m) and e ((x - m) (x - m)' - S), with S normalised by 1 / N."""
    draw = torch.Generator().manual_seed(0)
    theirs = moments(torch.randn(real, 24, generator=draw, dtype=torch.float64))
    x = torch.randn(n, 24, generator=draw, dtype=torch.float64) * torch.linspace(0.5, 2, 24) + 0.3
    (mean, cov), e = moments(x).gaussian(), 1e-4

    def moved(row, by):
        off = row - mean
        return Moments.of_gaussian(mean + by * off, cov + by * (torch.outer(off, off) - cov * (n - 1) / n))

    expected = [
        (frechet_distance(moved(row, e), theirs) - frechet_distance(moved(row, -e), theirs)) / (2 * e) for row in x
    ]
    influences = distance_and_influences(theirs, root_of(theirs.gaussian()[1]), moments(x), x)[1]
    torch.testing.assert_close(influences, torch.tensor(expected, dtype=torch.float64), rtol=2e-3, atol=2e-3)


def test_equal_real_pictures_are_a_point_mass():
    """Its distance to a Gaussian is the squared distance to the mean plus the variances; influences are (x - point)^2."""
    draw = torch.Generator().manual_seed(0)
    point, x = torch.randn(8, generator=draw).double(), torch.randn(30, 8, generator=draw).double()
    point_mass = moments(point.expand(5, 8))
    for generated in (x, x[:5]):
        expected = (generated.mean(0) - point).square().sum() + generated.var(0).sum()
        distance, influences = distance_and_influences(
            point_mass, root_of(torch.zeros(8, 8).double()), moments(generated), generated
        )
        assert distance == pytest.approx(float(expected), rel=1e-6)
        off = (generated - point).square().sum(1)
        torch.testing.assert_close(influences, off - off.mean(), rtol=1e-6, atol=1e-6)


def test_missing_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match="do not exist"):
        Inception(str(tmp_path / "none.pt"))
    (tmp_path / "evil.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match=r"Inception weights .*evil\.pt is broken"):
        Inception(str(tmp_path / "evil.pt"))
    with pytest.raises(ValueError, match="cannot be loaded") as error:
        OpenClip("ViT-B-32", str(tmp_path / "none.safetensors"))
    assert "clip_score" not in str(error.value)


def test_loading_a_model_is_quiet_and_leaves_the_log_as_it_was(caplog):
    with caplog.at_level(logging.INFO):
        OpenClip("shapes_clip")
        logging.info("ours")
    assert [record.message for record in caplog.records] == ["ours"]


@pytest.mark.parametrize("make", [
    lambda: FrechetDistance("fd_shapes", open_clip_model("shapes_clip")), lambda: ClipScore("clip_shapes", open_clip_model("shapes_clip")),
])  # fmt: skip
def test_a_metric_moves_all_its_tensors(make):
    metric = copy.deepcopy(make()).to("meta")
    states = [getattr(metric, name) for name, default in metric._defaults.items() if isinstance(default, torch.Tensor)]
    tensors = [*metric.extractor.parameters(), *metric.extractor.buffers(), *states]
    assert len(tensors) > 20
    assert {tensor.device.type for tensor in tensors} == {"meta"}
