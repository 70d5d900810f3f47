"""Checkpoints of earlier versions are read, those of newer ones say which version reads them."""

import inspect
import re
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

import dit
from dit.checkpoints.native import find_checkpoint, read_run_config
from dit.cli.front import first_fault
from dit.cli.train import train
from dit.config_check import check_config, find
from dit.plain_values import plain
from dit.runs import load_run
from dit.versions import KEYS, REPLACED, TARGETS, VERSION, upgrade

from .conftest import ROOT, composed

VERSION_0_1_0 = ROOT / "tests" / "fixtures" / "version_0_1_0"
TINY_0_1_0 = [  # what the run there was trained with, to step 2, by dit 0.1.0
    "experiment=shapes_learned_range", "autoencoder=identity", "data.module.train.count=32", "data.module.val.count=8",
    "data.module.unseen.count=8", "backbone.width=8", "backbone.depth=1", "backbone.heads=1", "backbone.patch=4",
    "batch_size=4", "trainer.accelerator=cpu", "trainer.val_check_interval=2", "callbacks.previews=null",
    "callbacks.checkpoints.every=2", "recipe.steps=2", "closing_prompts=4", "wandb.mode=disabled",
]  # fmt: skip

PARTS_OF_0_1_0 = (VERSION_0_1_0 / "parts.txt").read_text().splitlines()  # place: target(keys), of all its conf/


def changed_copy(run, folder, change):
    """A copy of a run with its checkpoints changed."""
    shutil.copytree(run, folder)
    for file in (folder / "checkpoints").glob("*.ckpt"):
        checkpoint = torch.load(file, weights_only=True)
        change(checkpoint)
        torch.save(checkpoint, file)
    return folder


def test_a_checkpoint_of_version_0_1_0_is_sampled_alike():
    """Both files were written by dit 0.1.0; see TINY_0_1_0."""
    run = load_run(VERSION_0_1_0)
    assert run.config.prediction.mean.c_noise._target_ == "dit.diffusion.prediction.timestep"
    samples = run.sample("a large red star on a black background", seeds=[0])
    expected = load_file(VERSION_0_1_0 / "samples.safetensors")["images"]
    assert expected.std() > 1
    torch.testing.assert_close(samples.images, expected, rtol=1e-4, atol=1e-2)


def test_a_run_of_version_0_1_0_is_resumed(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(VERSION_0_1_0, run)
    more = [f"run_dir={run}", f"cache_dir={tmp_path}", f"resume={run}", "trainer.max_steps=3"]
    train(composed("train", [*TINY_0_1_0, *more]))
    path, checkpoint = find_checkpoint(run)
    assert path.stem == "step_0000003"
    assert checkpoint[VERSION] == dit.__version__


def test_the_config_of_a_run_is_upgraded_too(tiny_run, tmp_path):
    config = yaml.safe_load((tiny_run / "config.yaml").read_text())
    config["recipe"]["_target_"] = "dit.pipeline.Recipe.only"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert read_run_config(tmp_path / "config.yaml") == read_run_config(tiny_run / "config.yaml")


@pytest.mark.parametrize("version", ["0.3.0", "1.0.0"])
def test_a_newer_checkpoint_says_which_version_reads_it(version, tiny_run, tmp_path, capsys):
    newer = changed_copy(tiny_run, tmp_path / "newer", lambda c: c.update({VERSION: version}))
    line = rf"was written by dit {version}, and this is dit {dit.__version__}: read it with dit>={version}$"
    for where in [newer, next((newer / "checkpoints").glob("*.ckpt"))]:
        with pytest.raises(ValueError, match=line):
            find_checkpoint(where)
    assert capsys.readouterr().err == ""


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

    with pytest.raises(ValueError, match=r"dit.diffusion.path.Spiral does not exist in this version of dit"):
        load_run(changed_copy(tiny_run, tmp_path / "run", change))


def test_every_new_name_exists_and_no_old_one_does():
    for old, new in TARGETS.items():
        find(new, "here")
        with pytest.raises(ValueError, match=f"It is called {new} now"):
            find(old, "here")
    assert upgrade({"a": [{"_target_": old} for old in TARGETS]}) == {
        "a": [{"_target_": new} for new in TARGETS.values()]
    }


@pytest.mark.parametrize("line", PARTS_OF_0_1_0)
def test_every_part_of_a_0_1_0_config_is_accepted(line):
    """Its target exists today, and takes every key that 0.1.0 gave it."""
    place, target, keys = re.fullmatch(r"(.*): (\S+)\((.*)\)", line).groups()
    old = {"_target_": target} | {key: None for key in keys.split(", ") if key}
    for name in reversed(place.split(".")):
        old = {name: old}
    part = upgrade(old)
    for _ in place.split("."):
        (part,) = part.values()
    accepted = inspect.signature(find(part.pop("_target_"), place)).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
        assert set(part) <= set(accepted)


@pytest.mark.parametrize("old", KEYS)
def test_an_old_key_on_the_command_line_is_answered_with_the_new_one(old):
    fault = first_fault("train", [f"{old}=1"])
    assert fault == f"{old}: there is no such key. It is called {KEYS[old]} now."


def test_a_replaced_key_on_the_command_line_is_answered_with_what_does_the_same():
    fault = first_fault("train", ["sampler=euler_ancestral", "sampler.euler_ancestral.eta=0.5"])
    assert fault.endswith("there is no such key. Use sampler.ddim.eta, with sampler=ddim.")
    assert first_fault("train", ["sampler=ddim", "sampler.ddim.eta=0.5"]) is None


def test_an_old_key_in_a_yaml_of_the_users_is_answered_with_the_new_one():
    config = composed("train", ["++prediction.clock={_target_:dit.diffusion.prediction.timestep,_partial_:true}"])
    with pytest.raises(ValueError, match=r"takes no clock; it takes c_noise\. It is called prediction\.c_noise now$"):
        check_config("train", plain(config), trusted=True)


def test_an_old_group_of_keys_is_answered_key_by_key():
    fault = first_fault("train", ["prediction.clock._target_=dit.diffusion.prediction.timestep"])
    assert fault.endswith("there is no such key. It is called prediction.c_noise._target_ now.")


@pytest.mark.parametrize(
    ("old", "words"),
    [
        ("dit.pipeline.Recipe.only", ["recipe._target_={}"]),
        ("dit.cli.build.network_of", ["guidance=auto", "guidance.network.ckpt=RUN", "guidance.network._target_={}"]),
        ("dit.diffusion.prediction.thousandths", ["+prediction.c_noise={{_target_:{},_partial_:true}}"]),
        ("dit.diffusion.prediction.time_to_data", ["+prediction.c_noise={{_target_:{},_partial_:true}}"]),
    ],
)
def test_an_old_target_on_the_command_line_is_answered_with_the_new_one(old, words):
    words = ["prediction=flow", *[word.format(old) for word in words]]
    assert first_fault("train", words) is None  # targets are looked up later, where imports are at hand
    with pytest.raises(ValueError, match=rf" It is called {TARGETS[old]} now$"):
        check_config("train", plain(composed("train", words)), trusted=True)


def test_the_changelog_lists_every_old_name():
    rows = (ROOT / "CHANGELOG.md").read_text()
    for old, new in (KEYS | TARGETS).items():
        assert f"| `{old}` | `{new}` |" in rows
    for old in REPLACED:
        assert f"| `{old}` | " in rows
