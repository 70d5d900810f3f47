"""Metrics for own pictures from the command line, without a download."""

import json

import pytest
from omegaconf import OmegaConf

from dit.cli.evaluate import evaluate
from dit.cli.front import first_fault
from dit.components import component, named_extractors
from dit.components import composed as composed_from_python
from dit.config_check import check_config

from ..conftest import composed, train_tiny


@pytest.mark.parametrize("extractor", ["own", "pixels", "shapes_clip", "dinov2"])
@pytest.mark.parametrize("metric", ["nearest_train", "fd_own"])
def test_an_extractor_is_chosen_by_one_word(metric, extractor):
    word = f"metric.{metric}.extractor={extractor}"
    cfg = composed_from_python("evaluate", ["ckpt=x", f"metric={metric}", word])
    expected = OmegaConf.load(f"conf/metric/extractor/{extractor}.yaml")
    assert cfg.metric[metric].extractor == expected
    check_config("evaluate", OmegaConf.to_container(cfg, resolve=True), trusted=True)
    assert first_fault("evaluate", ["ckpt=x", f"metric={metric}", word]) is None


def test_an_extractor_is_chosen_by_one_word_from_python():
    (metric,) = component("metric", "nearest_train", extractor="pixels").values()
    assert type(metric.extractor).__name__ == "Pixels"


def test_the_extractor_of_a_set_of_metrics_is_swapped_by_one_word():
    own = component("metric", "own", extractor="shapes_clip")
    assert {type(metric.extractor).__name__ for metric in own.values()} == {
        type(component("metric", "fd_shapes")["fd_shapes"].extractor).__name__
    }
    (fid,) = component("metric", "fid", extractor="pixels").values()
    assert type(fid.extractor).__name__ == "Pixels"


def test_what_takes_no_extractor_and_an_unknown_one_are_named():
    with pytest.raises(ValueError, match=r"^metric=bits_per_dim takes no extractor"):
        component("metric", "bits_per_dim", extractor="own")
    with pytest.raises(ValueError, match=r"^metric.fid.extractor=clipp: there is no such extractor; .* own, pixels"):
        component("metric", "inception", extractor="clipp")


def test_an_unknown_extractor_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"extractor=clipp: there is no such extractor; .* own, pixels"):
        composed_from_python("evaluate", ["ckpt=x", "metric=fd_own", "metric.fd_own.extractor=clipp"])


def test_an_extractor_of_a_folder_of_one_s_own(tmp_path):
    (tmp_path / "metric/extractor").mkdir(parents=True)
    (tmp_path / "metric/extractor/mine.yaml").write_text("_target_: mine.Extractor\n")
    cfg = composed("evaluate", ["ckpt=x", "metric=fd_own", "metric.fd_own.extractor=mine"])
    named_extractors(cfg, str(tmp_path))
    assert cfg.metric.fd_own.extractor._target_ == "mine.Extractor"


@pytest.fixture(scope="module")
def own_scores(tiny_run, tmp_path_factory):
    """A tiny run scored by all metrics for own pictures; the extractor is fitted for three steps."""
    folder = tmp_path_factory.mktemp("own")
    words = [f"ckpt={tiny_run}", "metric=own", "n=8", "references=24", "sampler=euler", "steps=2", "guidance.scale=1"]
    words += [f"metric.{name}.extractor.{key}" for name in ("fd_own", "nearest_own") for key in ("steps=3", "width=8")]
    words += [f"cache_dir={folder / 'cache'}", f"out={folder / 'out'}", "wandb.mode=disabled", "device=cpu"]
    return evaluate(composed("evaluate", words)), folder


def test_own_metrics_score_a_run_and_their_card_names_the_pictures(own_scores):
    folder, place = own_scores
    card = json.loads((folder / "results.json").read_text())["cards"][0]
    assert {"fd_own_8", "fd_pixels_8", "nearest_own", "nearest_own_copies"} <= card["scores"].keys()
    extractor = card["protocol"]["metrics"]["fd_own"]["extractor"]
    assert extractor["fitted_on"]
    assert len(list((place / "cache").glob("own_features_*"))) == 1


def test_bits_per_dim_alone_is_a_choice_of_training_and_of_its_evaluation(tmp_path):
    run = train_tiny(
        tmp_path / "run", "metric=bits_per_dim", "metric.bits_per_dim.count=4", "metric.bits_per_dim.steps=2"
    )
    words = [f"ckpt={run}", f"cache_dir={tmp_path / 'cache'}", "wandb.mode=disabled", "device=cpu"]
    folder = evaluate(composed("evaluate", words))
    assert "bits_per_dim" in (folder / "results.csv").read_text()
