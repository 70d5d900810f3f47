"""adapter=NAME from training to export: the network is changed after its initial weights, before a checkpoint's."""

import json

import pytest
import torch

from dit.checkpoints.native import averages_of, find_checkpoint
from dit.cli.export import export
from dit.evaluation.model_description import model_of
from dit.runs import load_run, merged_backbone

from ..conftest import composed, train_tiny
from .test_export import class_run

FROZEN = ["adapter=freeze", "adapter.trainable=['*.attention.*']"]


@pytest.fixture(scope="module")
def frozen(tiny_run, tmp_path_factory):
    return train_tiny(tmp_path_factory.mktemp("frozen") / "run", f"init={tiny_run}", *FROZEN)


def test_only_the_named_weights_are_trained_and_averaged(tiny_run, frozen):
    before, after = (find_checkpoint(run)[1] for run in (tiny_run, frozen))
    start = load_run(tiny_run).pipeline.backbone.state_dict()
    moved = {
        name for name, p in load_run(frozen).pipeline.backbone.named_parameters() if not torch.equal(p, start[name])
    }
    assert moved
    assert all(".attention." in name for name in moved)
    (average,) = averages_of(after).values()
    assert average.keys() == {n for n in next(iter(averages_of(before).values())) if ".attention." in n}


def test_a_run_with_an_adapter_is_resumed_only_with_it(frozen):
    assert json.loads((frozen / "summary.json").read_text())["steps"]
    with pytest.raises(ValueError, match="adapter"):
        train_tiny(frozen, "resume=auto", "trainer.max_steps=12")


def test_it_is_named_in_cards(tiny_run, frozen):
    named = [model_of(run)["networks"].get("adapter") for run in map(load_run, (tiny_run, frozen))]
    assert named == [None, {"_target_": "dit.adapters.freeze.Freeze", "trainable": ["*.attention.*"]}]


def test_a_part_that_no_objective_gives_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"the network reads 'second_time' of Condition\.extra"):
        train_tiny(tmp_path / "run", "adapter=extra_conditions")


def test_export_writes_the_merged_network_or_says_why_it_cannot(tmp_path):
    run = class_run(tmp_path, "run", *FROZEN)
    folder = export(composed("export", [f"ckpt={run}", f"out={tmp_path / 'out'}"]))
    assert list(folder.rglob("diffusion_pytorch_model.safetensors"))
    loaded = load_run(run)
    loaded.config.adapter = {"_target_": "dit.adapters.extra.ExtraConditions", "names": ["scale"]}
    with pytest.raises(ValueError, match="conditioned on scale, which no other"):
        merged_backbone(loaded)


def test_another_run_starts_from_the_merged_weights(frozen, tmp_path):
    run = train_tiny(tmp_path / "run", f"init={frozen}", "trainer.max_steps=1", "optimizer.lr=1e-12")
    start, end = (load_run(where, "raw").pipeline.backbone.state_dict() for where in (frozen, run))
    average = load_run(frozen).pipeline.backbone.state_dict()
    assert any(not torch.equal(start[name], average[name]) for name in start)
    for name, value in average.items():
        torch.testing.assert_close(end[name], value, atol=1e-6, rtol=0)
