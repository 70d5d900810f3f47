"""A metric inside other modules: saving, loading, moving and casting them, and a device without float64."""

import lightning as L
import pytest
import torch

from dit.metrics.clip import ClipScore
from dit.metrics.extractors import OpenClip, open_clip_model
from dit.metrics.frechet import FrechetDistance

from .every import DIM, Pixels, every_metric, pictures_to_features, random_pictures


class Network(Pixels):
    """A network with weights and a buffer; its features are on the CPU on any device."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(DIM, DIM)
        self.register_buffer("mean", torch.zeros(1))

    def extract(self, images):
        return {"pool": pictures_to_features(images)}


class Trained(L.LightningModule):
    def __init__(self, metric):
        super().__init__()
        self.net, self.metric = torch.nn.Linear(2, 2), metric


@pytest.mark.parametrize("name", every_metric(Pixels()))
def test_a_module_does_not_save_load_or_train_the_extractor(name):
    network = Network()
    module = Trained(every_metric(network)[name])
    assert set(module.state_dict()) == {"net.weight", "net.bias"}
    assert len(list(module.parameters())) == 2
    module.load_state_dict(Trained(every_metric(Network())[name]).state_dict())
    module.to("meta")
    assert network.linear.weight.device.type == network.mean.device.type == "meta"


def test_a_module_does_not_save_the_network_of_a_clip_score():
    module = torch.nn.ModuleDict({"clip": ClipScore("clip", open_clip_model("shapes_clip"))})
    assert isinstance(module["clip"].extractor, OpenClip)
    assert module.state_dict() == {}


def test_casting_a_module_does_not_cast_sums_and_extractor():
    metric = FrechetDistance("fd", Network())
    Trained(metric).to(torch.bfloat16)
    assert metric.total.dtype == metric.outer.dtype == torch.float64
    assert metric.extractor.linear.weight.dtype == torch.float32


def test_a_cloned_metric_returns_the_same_score():
    scores = []
    for metric in (FrechetDistance("fd", Pixels()), FrechetDistance("fd", Pixels()).clone()):
        metric.update(random_pictures(40, seed=1), real=True)
        metric.update(random_pictures(30, seed=2))
        scores.append(metric.compute())
    assert scores[0] == scores[1]


@pytest.mark.parametrize("name", every_metric(Pixels()))
def test_on_a_device_without_float64_sums_are_kept_on_the_cpu(name, monkeypatch):
    """The meta device stands for a device without float64."""
    from dit.metrics import base

    def scores(metric):
        metric.update(random_pictures(40, seed=1), real=True)
        metric.update(random_pictures(30, seed=2))
        return metric.compute()

    expected = scores(every_metric(Network())[name])
    monkeypatch.setattr(base, "has_float64", lambda device: device.type != "meta")
    network = Network()
    metric = every_metric(network)[name].to("meta")
    assert network.mean.device.type == "meta"
    assert metric.device.type == "cpu"
    assert scores(metric) == expected
