"""Parity with torch-fidelity and torchmetrics from pictures to scores, with one random InceptionV3.

With few pictures both lose precision in the Fréchet distance: their product of two covariances of low rank is not
symmetric, most of its 2048 eigenvalues are rounding errors of about 1e-16, and their roots of 1e-8 add up to 1e-4 of the
distance. The distance does not change under rotation, so their formulas are evaluated in the span of the features.
"""

import os

import numpy as np
import pytest
import torch

from dit.data.npz import NpzPictures
from dit.data.shapes import Shapes
from dit.metrics.extractors import Inception
from dit.metrics.frechet import FrechetDistance
from dit.metrics.inception_score import InceptionScore
from dit.metrics.kernel import KernelDistance
from dit.metrics.manifold import PrecisionRecall
from dit.metrics.statistics import read_statistics

EACH = 5


@pytest.fixture(scope="module")
def pictures():
    images = torch.from_numpy(Shapes("val", 2 * EACH).images(np.arange(2 * EACH)))
    return {"real": images[:EACH], "generated": 255 - images[EACH:]}


@pytest.fixture(scope="module")
def extractor(inception_weights):
    """In torch's default memory format, for bit-equal features; the format that `Inception` uses is faster."""
    network = Inception(inception_weights)
    network.net.to(memory_format=torch.contiguous_format)
    return network


def scored(metric, pictures):
    metric.update(pictures["real"], real=True)
    metric.update(pictures["generated"])
    return list(metric.compute().values())


@pytest.fixture(scope="module")
def fid(extractor, pictures):
    return scored(FrechetDistance("fid", extractor), pictures)[0]


def span(features):
    """Returns (D, N) an orthonormal basis of the span of features (N, D)."""
    return torch.linalg.qr(features.double().T)[0]


class Listed(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        return self.images[row]


@pytest.mark.filterwarnings("ignore:This DataLoader")
def test_one_run_of_torch_fidelity(extractor, inception_weights, pictures, fid, monkeypatch):
    from torch_fidelity import calculate_metrics, metric_fid

    basis = span(torch.cat([extractor(images)["pool"] for images in pictures.values()]))
    whole = metric_fid.fid_features_to_statistics
    monkeypatch.setattr(metric_fid, "fid_features_to_statistics", lambda features: whole(features.double() @ basis))
    theirs = calculate_metrics(
        input1=Listed(pictures["generated"]), input2=Listed(pictures["real"]), batch_size=EACH, cuda=False, verbose=False,
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=inception_weights,
        fid=True, kid=True, isc=True, prc=True, kid_subset_size=4, isc_splits=2,
        save_cpu_ram=True,  # in this process
    )  # fmt: skip
    assert fid == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    [kid] = scored(KernelDistance("kid", extractor, subset_size=4), pictures)
    assert kid == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)
    [score] = scored(InceptionScore("inception_score", extractor, splits=2), pictures)
    assert score == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert score > 1.1
    assert scored(PrecisionRecall(extractor), pictures) == pytest.approx([theirs["precision"], theirs["recall"]])


@pytest.mark.parametrize("antialias", [False, True])
def test_torchmetrics_agrees_only_without_antialiasing(antialias, inception_weights, pictures, fid, monkeypatch):
    from torchmetrics.image import fid as torchmetrics_fid

    metric = torchmetrics_fid.FrechetInceptionDistance(
        2048, feature_extractor_weights_path=inception_weights, antialias=antialias
    )
    features_of_parts = []
    metric.inception.register_forward_hook(lambda module, inputs, features: features_of_parts.append(features))
    metric.update(pictures["real"], real=True)
    metric.update(pictures["generated"], real=False)
    basis, formula = span(torch.cat(features_of_parts)), torchmetrics_fid._compute_fid
    monkeypatch.setattr(
        torchmetrics_fid, "_compute_fid",
        lambda m1, s1, m2, s2: formula(m1 @ basis, basis.T @ s1 @ basis, m2 @ basis, basis.T @ s2 @ basis),
    )  # fmt: skip
    theirs = float(metric.compute())
    if antialias:
        assert abs(theirs / fid - 1) > 1e-2
    else:
        assert theirs == pytest.approx(fid, rel=1e-5)


def test_the_memory_format_changes_only_rounding(inception_weights, extractor, pictures):
    fast, plain = (net(pictures["generated"][:2]) for net in (Inception(inception_weights), extractor))
    for name, features in plain.items():
        assert float((fast[name] - features).norm() / features.norm()) < 1e-4


PUBLISHED = ("DIT_ADM_SAMPLES", "DIT_ADM_REFERENCE", "DIT_INCEPTION_WEIGHTS")


@pytest.mark.slow
@pytest.mark.skipif(not all(name in os.environ for name in PUBLISHED), reason=f"{', '.join(PUBLISHED)} name the files")
def test_the_published_fid_of_adm_with_guidance():
    """The published table of ADM (Dhariwal and Nichol): ImageNet at 256 pixels, ADM-G, 50,000 pictures, with their files
    of samples and reference statistics."""
    samples, reference, weights = (os.environ[name] for name in PUBLISHED)
    extractor = Inception(weights).to("cuda" if torch.cuda.is_available() else "cpu")
    metrics = {name: FrechetDistance(name, extractor, layer) for name, layer in (("fid", "pool"), ("sfid", "spatial"))}
    for metric in metrics.values():
        metric.to(next(extractor.parameters()).device)
    read_statistics(reference).load_into(metrics.values())
    source = NpzPictures(samples)
    for rows in np.split(np.arange(len(source)), range(256, len(source), 256)):
        images = torch.from_numpy(source.images(rows))
        for metric in metrics.values():
            metric.update(images)
    assert metrics["fid"].compute()["fid_50k"] == pytest.approx(3.94256, abs=0.01)
    assert metrics["sfid"].compute()["sfid_50k"] == pytest.approx(6.1404, abs=0.05)
