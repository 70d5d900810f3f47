"""Laws of the measures of fine-tuning: subject fidelity, copies of the subject, and prior drift."""

import math

import numpy as np
import pytest
import timm
import torch
from hydra.utils import instantiate
from torch.nn import functional as F

from dit.components import component
from dit.data.shapes import Shapes
from dit.data.taught_shape import TaughtShape
from dit.evaluation.statistics import interval_of
from dit.metrics.frechet import Moments, frechet_distance
from dit.metrics.nearest_train import NearestTrain
from dit.metrics.prior_drift import PriorDrift
from dit.metrics.subject_fidelity import SubjectFidelity
from dit.scoring.references import update_references

from ..conftest import composed
from ..encoders.folders import save_open_clip
from .every import Pixels, pictures_to_features, random_pictures

SUBJECT = random_pictures(5, seed=1, spread=0.3, shift=1.0)


def scored(metric, generated, real):
    metric.reset()
    metric.reset_reference()
    metric.update(real, real=True)
    for part in generated.split(7):
        metric.update(part)
    return metric.result()


def test_pictures_equal_to_the_only_one_of_the_subject_have_a_fidelity_of_1():
    result = scored(SubjectFidelity("dino_i", Pixels()), SUBJECT[:1].repeat(9, 1, 1, 1), SUBJECT[:1])
    assert result.scores == pytest.approx({"dino_i": 1.0})
    assert result.each["dino_i"].shape == (9,)


def test_fidelity_is_the_mean_cosine_of_all_pairs():
    generated = random_pictures(20, seed=2)
    result = scored(SubjectFidelity("dino_i", Pixels()), generated, SUBJECT)
    pairs = [
        [float(F.cosine_similarity(a.double(), b.double(), dim=0)) for b in pictures_to_features(SUBJECT)]
        for a in pictures_to_features(generated)
    ]
    assert result.scores["dino_i"] == pytest.approx(np.mean(pairs), rel=1e-6)
    assert result.each["dino_i"].tolist() == pytest.approx(np.mean(pairs, axis=1), rel=1e-6)


def test_the_subject_with_itself_is_what_its_copies_would_reach_without_the_diagonal():
    metric, n = SubjectFidelity("clip_i", Pixels()), len(SUBJECT)
    scores = scored(metric, SUBJECT, SUBJECT).scores
    assert scores["clip_i"] == pytest.approx(((n - 1) * scores["clip_i_of_subject"] + 1) / n, rel=1e-6)
    twins = scored(metric, SUBJECT, SUBJECT[:1].repeat(2, 1, 1, 1)).scores
    assert twins["clip_i_of_subject"] == pytest.approx(1)
    assert "clip_i_of_subject" not in scored(metric, SUBJECT, SUBJECT[:1]).scores


@pytest.mark.parametrize("seed", [0, 1])
def test_fidelity_does_not_depend_on_the_order_of_pictures(seed):
    generated, draw = random_pictures(30, seed=2), torch.Generator().manual_seed(seed)
    a = scored(SubjectFidelity("i", Pixels()), generated, SUBJECT)
    order = torch.randperm(30, generator=draw)
    b = scored(SubjectFidelity("i", Pixels()), generated[order], SUBJECT[torch.randperm(5, generator=draw)])
    assert a.scores["i"] == pytest.approx(b.scores["i"], rel=1e-9)
    torch.testing.assert_close(a.each["i"][order], b.each["i"])


def test_fidelity_grows_from_other_pictures_to_the_subject():
    metric = SubjectFidelity("i", Pixels())
    noise = random_pictures(40, seed=9)
    subject = SUBJECT[torch.arange(40) % 5]
    mixes = [(subject * s + noise * (1 - s)).round().to(torch.uint8) for s in (0.0, 0.3, 0.6, 1.0)]
    values = [scored(metric, mix, SUBJECT).scores["i"] for mix in mixes]
    assert values == sorted(values)
    assert values[-1] > values[0] + 0.1


def test_a_copy_is_at_most_a_third_as_far_from_one_picture_of_the_subject_as_from_the_next():
    metric = NearestTrain("near", Pixels(), split="subject")
    assert metric.reference_split == "subject"
    others = random_pictures(20, seed=4, spread=1.5, shift=-1.0)
    between = (SUBJECT[:1] * 0.6 + SUBJECT[1:2] * 0.4).to(torch.uint8)  # two thirds as far from the first
    result = scored(metric, torch.cat([SUBJECT, SUBJECT + 1, between, others]), SUBJECT)
    assert result.each["near_copies"].tolist() == [True] * 10 + [False] * 21
    distances = torch.cdist(*(F.normalize(pictures_to_features(x).double()) for x in (others, SUBJECT))).sort(1).values
    torch.testing.assert_close(result.each["near"][11:], distances[:, 0], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"^near\.split=val must be train or subject$"):
        NearestTrain("near", Pixels(), split="val")


def test_on_shapes_copies_are_told_from_the_same_shape_in_other_colours():
    """Eight hearts: none of 100 hearts of other attributes is a copy; of hearts moved by a pixel, most are."""
    taught, others = TaughtShape("heart", "train", 8), TaughtShape("heart", "unseen", 100)
    subject, unseen = (torch.from_numpy(x.images(np.arange(len(x)))) for x in (taught, others))
    metric = component("metric", "fine_tuning_shapes")["nearest_subject_shapes"]
    assert scored(metric, unseen, subject).scores["nearest_subject_shapes_copies"] < 0.02
    assert scored(metric, subject.roll((1, 1), (2, 3)), subject).scores["nearest_subject_shapes_copies"] > 0.8


def test_the_drift_from_equal_pictures_is_0_for_each_pair():
    result = scored(PriorDrift("drift", Pixels()), SUBJECT.repeat(8, 1, 1, 1), SUBJECT.repeat(8, 1, 1, 1))
    assert result.scores == {"drift_40": pytest.approx(0, abs=1e-9)}
    assert result.each["drift_40"].abs().max() < 1e-6


@pytest.mark.parametrize("n", [40, 8], ids=["more pictures than features", "fewer"])
def test_drift_is_the_frechet_distance_and_symmetric(n):
    a, b = random_pictures(n, seed=1), random_pictures(n, seed=2, spread=1.3, shift=0.4)
    moments = [Moments.zero(12), Moments.zero(12)]
    for part, pictures in zip(moments, (a, b), strict=True):
        part.add(pictures_to_features(pictures))
    one, other = (scored(PriorDrift("d", Pixels()), *pair) for pair in ((a, b), (b, a)))
    assert one.scores[f"d_{n}"] == pytest.approx(frechet_distance(*moments), rel=1e-6)
    assert one.scores[f"d_{n}"] == pytest.approx(other.scores[f"d_{n}"], rel=1e-6)
    torch.testing.assert_close(one.each[f"d_{n}"], other.each[f"d_{n}"], rtol=1e-4, atol=1e-4)
    assert float(one.each[f"d_{n}"].mean()) == pytest.approx(one.scores[f"d_{n}"])
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    shuffled = scored(PriorDrift("d", Pixels()), a[order], b[order])
    assert shuffled.scores[f"d_{n}"] == pytest.approx(one.scores[f"d_{n}"], rel=1e-6)


def pairs_of(n, seed):
    """Pictures of one model, and of the other with the same noise: a little changed."""
    base = random_pictures(n, seed)
    change = random_pictures(n, seed + 10_000).short() - 128
    return (base.short() + 12 + change // 4).clamp(0, 255).to(torch.uint8), base


def test_the_interval_of_the_drift_covers_that_of_many_pictures():
    """100 times 200 pairs. The distance of 20000 pairs lies in 95 % of the intervals, up to the bias of 1 / N, which is
    small here; the intervals are not much wider than needed."""
    metric = PriorDrift("d", Pixels())
    truth = scored(metric, *pairs_of(20_000, seed=7)).scores["d_20k"]
    found = [scored(metric, *pairs_of(200, seed=100 + i)) for i in range(100)]
    values = torch.tensor([result.scores["d_200"] for result in found])
    predicted = torch.tensor([float(result.each["d_200"].std()) / math.sqrt(200) for result in found]).mean()
    assert float(predicted) == pytest.approx(float(values.std()), rel=0.2)
    ends = [interval_of(result.each["d_200"], result.scores["d_200"]) for result in found]
    assert sum(low <= truth <= high for low, high in ends) / 100 > 0.85


def test_the_reference_of_the_drift_are_generated_pictures_in_their_order():
    metric, pictures = PriorDrift("d", Pixels()), random_pictures(12, seed=3)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    metric.update(pictures[order], index=order.tolist())
    features = metric.take_features()
    torch.testing.assert_close(features, pictures_to_features(pictures))
    assert not metric.count_samples()
    metric.load_reference({"features": features})
    metric.update(pictures)
    assert metric.compute()["d_12"] == pytest.approx(0, abs=1e-9)
    metric.reset()
    metric.update(pictures[:11])
    with pytest.raises(ValueError, match="11 pictures of one model and 12 of the other"):
        metric.compute()


def test_on_shapes_the_subject_is_told_from_other_shapes():
    """Stars in the tiny CLIP: held-out stars are nearer to eight stars than other shapes are."""
    source = Shapes("val", 400)
    images, stars = torch.from_numpy(source.images(np.arange(400))), [" star " in c for c in source.captions]
    rows = torch.tensor(stars).nonzero()[:, 0]
    metric = component("metric", "fine_tuning_shapes")["clip_i_shapes"]
    near = scored(metric, images[rows[8:48]], images[rows[:8]]).scores["clip_i_shapes"]
    far = scored(metric, images[~torch.tensor(stars)][:40], images[rows[:8]]).scores["clip_i_shapes"]
    assert near > far + 0.05


def test_a_call_that_has_no_other_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^drift: compare two models, which only evaluate\.py does; leave them out$"):
        update_references([PriorDrift("drift", Pixels())], {}, {}, tmp_path)
    with pytest.raises(ValueError, match=r"i: need real pictures, and none are given; say subject=FOLDER or \.npz$"):
        update_references([SubjectFidelity("i", Pixels())], {}, {}, tmp_path)


def test_the_published_networks_are_read_from_files_and_named_in_the_card(tmp_path):
    """The networks of metric=fine_tuning with random weights: DINO's ViT-S/16 and a small CLIP."""
    torch.manual_seed(0)
    net = timm.create_model("vit_small_patch16_224.dino", pretrained=False, num_classes=0, global_pool="token")
    torch.save(net.state_dict(), tmp_path / "dino.pt")
    files = [f"metric.dino_i.extractor.weights={tmp_path / 'dino.pt'}", "metric.clip_i.extractor.pretrained=null",
             f"metric.clip_i.extractor.model=local-dir:{save_open_clip(tmp_path / 'clip')}"]  # fmt: skip
    metrics = instantiate(composed("evaluate", ["ckpt=x", "metric=fine_tuning", *files]).metric)
    assert metrics["dino_i"].extractor.protocol["network"] == "vit_small_patch16_224.dino of timm"
    assert metrics["prior_drift"].extractor is metrics["nearest_subject"].extractor is metrics["dino_i"].extractor
    assert metrics["clip_i"].extractor is metrics["clip_t"].extractor
    pictures = torch.from_numpy(Shapes("val", 4).images(np.arange(4)))
    for name in ("dino_i", "clip_i"):
        assert scored(metrics[name], pictures[:1], pictures[:1]).scores[name] == pytest.approx(1)
    copies = scored(metrics["nearest_subject"], pictures, pictures[:3]).each["nearest_subject_copies"]
    assert copies.tolist()[:3] == [True] * 3
    assert scored(metrics["prior_drift"], pictures, pictures).scores["prior_drift_4"] == pytest.approx(0, abs=1e-6)
