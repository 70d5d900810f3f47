import copy
import logging

import numpy as np
import pytest
import torch

from dit.data.shapes import Shapes
from dit.data.shapes_checker import ShapesChecker
from dit.metrics.clip import ClipScore, load_clip
from dit.metrics.extractors import ClipImage, Inception
from dit.metrics.frechet import FrechetDistance, Moments, frechet_distance
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
    """Two sets with exactly known moments: |m|^2 + sum (s1 - s2)^2 for commuting covariances."""
    draw = np.random.default_rng(0).normal(size=(5000, 6))
    white = (draw - draw.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(draw.T))).T
    s1, s2, shift = np.array([1, 2, 3, 1, 1, 2.0]), np.array([2, 2, 1, 1, 3, 2.0]), np.arange(6) / 3
    a, b = torch.from_numpy(white * s1), torch.from_numpy(white * s2 + shift)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(
        (shift**2).sum() + ((s1 - s2) ** 2).sum(), rel=1e-6
    )
    assert abs(frechet_distance(moments(a), moments(a))) < 1e-6


def test_two_pictures_are_the_least():
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(moments(torch.randn(1, 3)), moments(torch.randn(9, 3)))


@pytest.fixture(scope="module")
def shapes():
    source = Shapes("val", 400)
    return torch.from_numpy(source.images(np.arange(400))), list(source.captions)


def test_fd_shapes_is_near_zero_on_real_pictures_and_grows_with_blur_and_noise(shapes):
    images, captions = shapes
    metric = FrechetDistance("fd_shapes", ClipImage("shapes_clip"))
    metric.reference(images[:200], captions[:200])

    def score(pictures):
        metric.reset()
        for part in pictures.split(64):
            metric.update(part, captions[: len(part)])
        return metric.compute()["fd_shapes"]

    assert abs(score(images[:200])) < 1e-4 * score(255 - images[:200])
    blurred = [torch.nn.functional.avg_pool2d(images[200:].float(), k, 1, k // 2) for k in (1, 3, 5)]
    scores = [score(x.round().clamp(0, 255).to(torch.uint8)) for x in blurred]
    assert scores == sorted(scores)
    noise = torch.randn(200, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    scores = [score((images[200:] + s * noise).round().clamp(0, 255).to(torch.uint8)) for s in (0, 15, 40)]
    assert scores == sorted(scores)


def test_clip_shapes_prefers_true_captions(shapes):
    images, captions = shapes
    metric = ClipScore("clip_shapes", "shapes_clip")
    metric.reference(images, captions)
    true = metric.cosines(images, captions)
    for word, other in (("large", "small"), ("red", "green"), ("star", "circle"), ("black", "white")):
        rows = [i for i, c in enumerate(captions) if word in c]
        swapped = metric.cosines(images[rows], [captions[i].replace(word, other) for i in rows])
        assert (true[rows] > swapped).double().mean() > 0.9, f"{word} against {other}"
    metric.update(images[:10], captions[:10])
    assert metric.compute()["clip_shapes"] == pytest.approx(100 * float(true[:10].mean()), abs=1e-4)


def test_clip_score_refuses_what_it_cannot_judge(shapes):
    images, captions = shapes
    metric = ClipScore("clip_shapes", "shapes_clip")
    with pytest.raises(ValueError, match="cannot judge"):
        metric.reference(torch.randint_like(images, 256), captions)


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


def test_states_of_two_processes_add_up(shapes):
    images, captions = shapes
    one, left, right = (PromptAccuracy(ShapesChecker()) for _ in range(3))
    one.update(images[:20], captions[:20])
    left.update(images[:7], captions[:7])
    right.update(images[7:20], captions[7:20])
    for state in ("right", "count"):
        setattr(left, state, getattr(left, state) + getattr(right, state))
    assert left.compute() == one.compute()


class Pictures(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        return self.images[row]


def test_fid_with_local_weights_equals_torch_fidelity(tmp_path, shapes):
    """The same random InceptionV3 on both sides."""
    from torch_fidelity import calculate_metrics
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    net = FeatureExtractorInceptionV3.__new__(FeatureExtractorInceptionV3)
    weights = str(tmp_path / "inception.pt")

    class Saved(Exception):
        pass

    def save_instead(self, *args, **kwargs):
        torch.save(self.state_dict(), weights)
        raise Saved

    load, FeatureExtractorInceptionV3.load_state_dict = (
        FeatureExtractorInceptionV3.load_state_dict,
        save_instead,
    )
    try:
        torch.save({}, weights)
        with pytest.raises(Saved):
            net.__init__("inception", ["2048"], feature_extractor_weights_path=weights)
    finally:
        FeatureExtractorInceptionV3.load_state_dict = load

    images, captions = shapes
    metric = FrechetDistance("fid", Inception(weights))
    metric.reference(images[:12], captions[:12])
    metric.update(images[12:24], captions[12:24])
    theirs = calculate_metrics(
        input1=Pictures(images[12:24]), input2=Pictures(images[:12]),
        cuda=False, fid=True, verbose=False, feature_extractor_weights_path=weights, batch_size=6,
    )  # fmt: skip
    assert metric.compute()["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)


def test_missing_weights_are_one_line(tmp_path):
    with pytest.raises(ValueError, match="do not exist"):
        Inception(str(tmp_path / "none.pt"))
    (tmp_path / "evil.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match="cannot be read safely"):
        Inception(str(tmp_path / "evil.pt"))
    with pytest.raises(ValueError, match="cannot be had") as told:
        ClipScore("alignment", "ViT-B-32", str(tmp_path / "none.safetensors"))
    assert "clip_score" not in str(told.value)


def test_loading_a_model_is_quiet_and_leaves_the_log_as_it_was(caplog):
    with caplog.at_level(logging.INFO):
        load_clip.__wrapped__("shapes_clip")
        logging.info("ours")
    assert [record.message for record in caplog.records] == ["ours"]


@pytest.mark.parametrize("make", [
    lambda: FrechetDistance("fd_shapes", ClipImage("shapes_clip")), lambda: ClipScore("clip_shapes", "shapes_clip"),
])  # fmt: skip
def test_a_metric_moves_with_all_it_holds(make):
    metric = copy.deepcopy(make()).to("meta")
    tensors = [*metric.parameters(), *metric.buffers(), *(getattr(metric, name) for name in metric._defaults)]
    assert len(tensors) > 20
    assert {tensor.device.type for tensor in tensors} == {"meta"}
