"""The laws of every metric of pictures. A new one in conf/metric that needs no network gets them without a row."""

import pytest
import torch
from hydra.utils import instantiate

from dit.data.shapes import Shapes
from dit.evaluation.selftest import faults_of
from dit.metrics.base import ImageMetric

from ..parts import found, target
from .every import Pixels, every_metric, random_pictures

PICTURES, REAL = random_pictures(24, seed=1, shift=0.3), random_pictures(40, seed=2)
PROMPTS = [f"prompt {i}" for i in range(24)]


def found_metrics():
    """New metrics with all they need in their yaml: those of dit have tests of their own."""
    nodes = {key: node for key, node in found("metric", set()).items() if not node._target_.startswith("dit.")}
    return {
        key: lambda node=node: instantiate(node) for key, node in nodes.items() if issubclass(target(node), ImageMetric)
    }


MADE = {name: lambda name=name: every_metric(Pixels())[name] for name in every_metric(Pixels())} | found_metrics()


def result(metric, parts):
    """The result of pictures that are given in parts, each by their positions."""
    if metric.reference_split is not None:
        metric.update(REAL, real=True)
    for part in parts:
        metric.update(PICTURES[part], [PROMPTS[i] for i in part], part)
    return metric.result()


@pytest.mark.parametrize("name", MADE)
class TestMetric:
    def test_headlines_are_columns(self, name):
        metric = MADE[name]()
        scores = result(metric, [range(24)]).scores
        assert {metric.column(key, 24, metric.reference_count) for key in metric.headlines} <= scores.keys()
        assert all(isinstance(value, float) for value in scores.values())

    def test_batches_and_their_order_do_not_matter(self, name):
        whole = result(MADE[name](), [range(24)])
        parts = result(MADE[name](), [range(10, 24), range(3), range(3, 10)])
        assert parts.scores == pytest.approx(whole.scores, rel=1e-5, abs=1e-7)
        for column, each in whole.each.items():
            torch.testing.assert_close(parts.each[column].double(), each.double(), rtol=1e-4, atol=1e-6)

    def test_the_mean_of_the_contributions_is_the_score(self, name):
        found = result(MADE[name](), [range(24)])
        for column, each in found.each.items():
            assert len(each) == 24
            assert float(each.double().mean()) == pytest.approx(found.scores[column], rel=1e-5, abs=1e-7)

    def test_reset_removes_the_generated_pictures_and_no_others(self, name):
        metric = MADE[name]()
        first = result(metric, [range(24)]).scores
        metric.reset()
        metric.update(PICTURES, PROMPTS)
        assert metric.result().scores == pytest.approx(first)


@pytest.mark.parametrize("name", found_metrics())
def test_a_new_metric_passes_the_self_test(name):
    source = Shapes("val", 16)
    images = torch.from_numpy(source.images(torch.arange(16).numpy()))
    assert faults_of({name: MADE[name]()}, images, source.captions) == []
