"""Checkpoints of earlier versions are read, those of newer ones say which version reads them."""

import shutil

import pytest
import torch
import yaml

import dit
from dit.checkpoints.native import find_checkpoint, read_run_config
from dit.cli.front import first_fault
from dit.config_check import find
from dit.runs import load_run
from dit.versions import KEYS, TARGETS, VERSION, upgrade


def changed_copy(run, folder, change):
    """A copy of a run with its checkpoints changed."""
    shutil.copytree(run, folder)
    for file in (folder / "checkpoints").glob("*.ckpt"):
        checkpoint = torch.load(file, weights_only=True)
        change(checkpoint)
        torch.save(checkpoint, file)
    return folder


def as_0_1_0(checkpoint):
    """What version 0.1.0 wrote."""
    del checkpoint[VERSION]
    config = checkpoint["dit_config"]
    config["recipe"]["_target_"] = "dit.pipeline.Recipe.only"
    config["prediction"]["clock"] = {"_target_": "dit.diffusion.prediction.thousandths", "_partial_": True}


def test_a_checkpoint_of_version_0_1_0_is_read_and_sampled(tiny_run, tmp_path):
    old = changed_copy(tiny_run, tmp_path / "old", as_0_1_0)
    ours, theirs = load_run(tiny_run), load_run(old)
    assert theirs.config.prediction.c_noise._target_ == "dit.diffusion.prediction.scaled_time"
    assert torch.equal(theirs.sample("a red star", steps=2).images, ours.sample("a red star", steps=2).images)


def test_the_config_of_a_run_is_upgraded_too(tiny_run, tmp_path):
    config = yaml.safe_load((tiny_run / "config.yaml").read_text())
    config["recipe"]["_target_"] = "dit.pipeline.Recipe.only"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert read_run_config(tmp_path / "config.yaml") == read_run_config(tiny_run / "config.yaml")


@pytest.mark.parametrize("version", ["0.3.0", "1.0.0"])
def test_a_newer_checkpoint_says_which_version_reads_it(version, tiny_run, tmp_path):
    newer = changed_copy(tiny_run, tmp_path / "newer", lambda c: c.update({VERSION: version}))
    file = next((newer / "checkpoints").glob("*.ckpt"))
    with pytest.raises(
        ValueError, match=rf"was written by dit {version}, and this is dit {dit.__version__}: read it with dit>="
    ):
        find_checkpoint(file)


def test_a_patch_version_changes_nothing_that_is_written(tiny_run, tmp_path):
    same = changed_copy(tiny_run, tmp_path / "same", lambda c: c.update({VERSION: f"{dit.__version__}9"}))
    assert load_run(same).step == load_run(tiny_run).step


def test_a_version_that_is_none_is_refused(tiny_run, tmp_path):
    odd = changed_copy(tiny_run, tmp_path / "odd", lambda c: c.update({VERSION: "new"}))
    with pytest.raises(ValueError, match="dit_version='new' is not a version"):
        find_checkpoint(next((odd / "checkpoints").glob("*.ckpt")))


def test_a_name_that_never_was_is_still_refused(tiny_run, tmp_path):
    def change(checkpoint):
        checkpoint["dit_config"]["path"]["_target_"] = "dit.diffusion.path.Spiral"

    with pytest.raises(ValueError, match=r"dit.diffusion.path.Spiral is not known to this version of dit"):
        load_run(changed_copy(tiny_run, tmp_path / "run", change))


def test_every_new_name_exists_and_no_old_one_does():
    for old, new in TARGETS.items():
        find(new, "here")
        with pytest.raises(ValueError, match=f"It is called {new} now"):
            find(old, "here")
    assert upgrade({"a": [{"_target_": old} for old in TARGETS]}) == {
        "a": [{"_target_": new} for new in TARGETS.values()]
    }


@pytest.mark.parametrize("old", KEYS)
def test_an_old_key_on_the_command_line_is_answered_with_the_new_one(old):
    fault = first_fault("train", [f"{old}=1"])
    assert fault == f"{old}: there is no such key. It is called {KEYS[old]} now."
