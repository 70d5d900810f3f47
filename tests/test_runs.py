"""From a run directory to objects."""

import pytest

from dit.build import trained_with_null, without_captions
from dit.checkpoints.native import checkpoints_of
from dit.runs import load_run

from .conftest import composed


def test_a_run_has_its_pipeline_config_file_and_step(tiny_run):
    run = load_run(tiny_run, device="cpu")
    assert run.path == checkpoints_of(tiny_run)[0]
    assert run.step == 6
    assert run.config.name == "shapes_pixels"
    assert not run.pipeline.backbone.training
    assert not any(p.requires_grad for p in run.pipeline.backbone.parameters())


@pytest.mark.parametrize(("words", "bare", "null"), [
    ([], False, True), (["caption_dropout=0"], False, False), (["experiment=folder_unconditional", "data.path=x"], True, False),
    (["experiment=folder_unconditional", "data.path=x", "caption_dropout=0.1"], True, False), (["text_encoder.words=[]"], True, False),
    (["text_encoder.words=[a]"], False, True), (["text_encoder=clip", "data=folder", "data.path=x", "data.captions=none"], True, False),
])  # fmt: skip
def test_whether_a_run_has_captions_and_knows_none(words, bare, null):
    cfg = composed("train", words)
    assert without_captions(cfg) == bare
    assert trained_with_null(cfg) == null
