"""prepare: the command, and that training from a store is training from the cache, to the digit."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dit.cli.front import cause_of, message_of
from dit.cli.prepare import prepare
from dit.cli.train import train
from dit.data import remote
from dit.data.latent_dataset import LatentDataset
from dit.data.prepared import Prepared
from dit.data.shards import Store
from dit.errors import first_line
from dit.scoring.references import size_of
from dit.training.diffusion import DiffusionModule

from ..conftest import ROOT, TINY, command, composed, only_line_of
from ..data.server import Server
from ..encoders.small import saved

COUNTS = ["data.module.train.count=256", "data.module.val.count=64"]
TRAINING = [word for word in TINY if not word.startswith("data.module.") or "limit" in word]


def store(folder, *words):
    shapes = [] if any(word.startswith("data=") for word in words) else COUNTS
    return prepare(composed("prepare", ["autoencoder=identity", *shapes, f"out={folder}", "device=cpu", *words]))


def trained(run, *words):
    """The weights after six steps, and every number of the summary but times."""
    folder = train(composed("train", [*TRAINING, f"run_dir={run}", f"cache_dir={run.parent / 'cache'}", *words]))
    state = torch.load(folder / "checkpoints" / "step_0000006.ckpt", weights_only=True)["state_dict"]
    summary = json.loads((folder / "summary.json").read_text())
    return state, {
        name: value for name, value in summary.items() if not re.search("second|unseen|higher_is_better", name)
    }


def from_store(folder, *words):
    return ["data=prepared", f"data.path={folder}", "data.caption_words=10", *words]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return store(tmp_path_factory.mktemp("prepared") / "store")


def equal(one, other):
    assert one[1] == other[1]
    assert one[0].keys() == other[0].keys()
    return all(torch.equal(value, other[0][name]) for name, value in one[0].items())


def test_a_run_from_the_store_equals_a_run_from_the_cache(prepared, tmp_path):
    cached = trained(tmp_path / "cached", *COUNTS)
    assert equal(trained(tmp_path / "stored", *from_store(prepared, "data.verify=true")), cached)


def test_so_it_does_with_flips_and_posterior_samples(tmp_path):
    coder = ["autoencoder=sd", f"autoencoder.path={saved(tmp_path, 'kl_4')}", "data.flip=true", "data.posterior=sample"]
    folder = store(tmp_path / "store", *coder)
    words = [*coder, "backbone.patch=2", "trainer.max_steps=6"]
    cached = trained(tmp_path / "cached", *COUNTS, *words)
    assert equal(trained(tmp_path / "stored", *from_store(folder, *words)), cached)


def test_a_run_from_the_store_is_scored_at_several_sizes(prepared, tmp_path):
    """Without real pictures: a store has latents only, of one size."""
    from dit.cli.evaluate import evaluate

    trained(tmp_path / "run", *from_store(prepared))
    words = [f"ckpt={tmp_path / 'run'}", f"out={tmp_path / 'out'}", f"cache_dir={tmp_path}", "metric=clip_shapes", "n=2",
             "size=[[32,32],[48,32]]", "sampler=euler", "steps=1", "guidance.scale=1", "wandb.mode=disabled",
             "real={_target_: dit.data.shapes.Shapes, split: val, count: 64}"]  # fmt: skip
    results = json.loads((evaluate(composed("evaluate", words)) / "results.json").read_text())
    assert [card["failed"] for card in results["cards"]] == [None, None]
    assert size_of(Prepared(str(prepared), "val", 32)) == (32, 32)


def words_of_mixture(root):
    sources = ",".join(
        f"{name}:{{_target_:dit.data.folder.Folder,_partial_:true,path:{root / name},template:'a *',val_share:0.3}}"
        for name in ("photos", "drawings")
    )
    return ["data=mixture", f"data.sources={{{sources}}}", "data.weights={photos:3,drawings:1}", "data.size=16",
            "data.caption_words=10", "data.module.val_limit=64"]  # fmt: skip


def test_a_run_from_a_prepared_mixture_equals_a_run_from_the_cache(tmp_path):
    draw = np.random.default_rng(0)
    for name, count in (("photos", 60), ("drawings", 40)):
        for i in range(count):
            file = tmp_path / name / ("cat" if i % 2 else "dog") / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
    mixture, own = words_of_mixture(tmp_path), ["trainer.max_steps=6", "closing_prompts=1", "metric=folder"]
    cached = trained(tmp_path / "cached", *mixture, *own)
    sources = mixture[:-1]
    folder = store(tmp_path / "store", *sources)
    assert {path.name for path in (folder / "train").iterdir()} == {"photos", "drawings", "parts.json"}
    words = from_store(folder, "data.size=16", "data.module.val_limit=64", *own)
    assert equal(trained(tmp_path / "stored", *words), cached)
    other = trained(tmp_path / "other", *words, "data.weights={photos:1,drawings:3}")
    assert other[1]["val/loss"] != cached[1]["val/loss"]
    with pytest.raises(ValueError, match=r"give a weight for each source"):
        Prepared(str(folder), "train", 16, weights={"photos": 1.0})
    with pytest.raises(ValueError, match=r"is finished, with the mixture photos, drawings"):
        store(folder, *sources, "data.weights={photos:1,drawings:1}")


@pytest.mark.slow
def test_a_run_whose_store_vanishes_ends_in_one_line_and_goes_on_when_it_is_back(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "WAIT", 0.01)
    server = Server(prepared)
    words = [*from_store(server.url), "closing_prompts=1"]
    real = DiffusionModule.training_step

    def stopping(module, *args):
        if module.global_step == 4:
            server.stop()
        return real(module, *args)

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionModule, "training_step", stopping)
        with pytest.raises(ValueError, match=rf"^cannot read {server.url}/(train|val)/.*, 3 times$"):
            trained(tmp_path / "run", *words)
    assert [file.stem for file in (tmp_path / "run" / "checkpoints").glob("*4.ckpt")] == ["step_0000004"]
    again = Server(prepared, port=server.port)
    try:
        assert equal(trained(tmp_path / "run", *words, "resume=auto"), trained(tmp_path / "whole", *words))
    finally:
        again.stop()


@pytest.mark.parametrize("fault", ["killed", "vanished"])
def test_a_run_whose_loading_process_fails_ends_in_one_line_and_goes_on(prepared, tmp_path, monkeypatch, fault):
    words = [*from_store(prepared), "data.module.workers=1", "closing_prompts=1"]
    real, calls = LatentDataset.__getitem__, []

    def failing(data, visits):
        calls.append(visits)
        if len(calls) == 7 and torch.utils.data.get_worker_info() is not None:
            if fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise remote.Unreachable("s3://bucket/00000.safetensors", "connection refused, 3 times")
        return real(data, visits)

    with monkeypatch.context() as patch:
        patch.setattr(LatentDataset, "__getitem__", failing)
        with pytest.raises((RuntimeError, ValueError)) as error:
            trained(tmp_path / "run", *words)
    line = message_of(error.value)
    expected = {
        "killed": "a process that loads data ended unexpectedly, as when memory runs out: DataLoader worker",
        "vanished": "cannot read s3://bucket/00000.safetensors: connection refused, 3 times",
    }
    assert line.startswith(expected[fault])
    assert "\n" not in line
    assert list((tmp_path / "run" / "checkpoints").glob("step_*2.ckpt"))
    assert equal(trained(tmp_path / "run", *words, "resume=auto"), trained(tmp_path / "whole", *words))


def test_it_prints_its_folder_last_and_does_not_repeat_what_is_there(prepared, capsys):
    files = sorted(prepared.rglob("*"))
    times = [file.stat().st_mtime_ns for file in files]
    assert store(prepared, "verify=true") == prepared
    assert capsys.readouterr().out.splitlines()[-1] == str(prepared)
    assert sorted(prepared.rglob("*")) == files
    assert [file.stat().st_mtime_ns for file in files] == times
    assert {file.name for file in prepared.iterdir()} == {"train", "val", "prepare.yaml"}
    assert len(Store(prepared / "train", verify=True)) == 256


def test_other_pictures_in_the_same_folder_are_refused(prepared):
    with pytest.raises(ValueError, match=r"train is finished, and differs in source \(.*append=true"):
        store(prepared, "data.module.train.count=200")
    with pytest.raises(ValueError, match=r"is finished, and differs in flip \(False, not True\)"):
        store(prepared, "data.flip=true")


def test_more_pictures_are_appended(tmp_path):
    folder = store(tmp_path / "store")
    store(folder, "append=true", "data.module.train.count=300")
    assert [shard.count for shard in Store(folder / "train", verify=True).shards] == [256, 300]
    assert len(Store(folder / "val").shards) == 1  # that split is there


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["devices=2", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_several_processes_write_the_same_bytes(launcher, tmp_path):
    words = [
        "autoencoder=identity",
        "data.module.train.count=1024",
        "data.module.val.count=64",
        "device=cpu",
        "shard_mb=1",
    ]
    one = prepare(composed("prepare", [*words, f"out={tmp_path / 'one'}"]))
    start = ["-m", "dit.cli.prepare", *words, f"out={tmp_path / 'two'}"]
    if launcher == "torchrun":
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *start]
    else:
        start += [launcher]
    output = command(*start)
    assert output.returncode == 0, output.stderr
    assert output.stdout.splitlines()[-1] == str(tmp_path / "two")
    files = sorted(file.relative_to(one) for file in one.rglob("*") if file.is_file())
    assert files == sorted(
        file.relative_to(tmp_path / "two") for file in (tmp_path / "two").rglob("*") if file.is_file()
    )
    assert all((one / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)
    assert len(files) == 1 + 4 * 3 + 1 + 3 + 1


@pytest.mark.slow
def test_a_killed_command_goes_on_where_it_was(tmp_path):
    out = tmp_path / "store"
    words = [
        "-m",
        "dit.cli.prepare",
        "autoencoder=identity",
        "data.module.train.count=4096",
        "shard_mb=1",
        f"out={out}",
    ]
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stderr=subprocess.DEVNULL, env=os.environ)
    while len(list(out.glob("train/*.json"))) < 2:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "train" / "manifest.json").exists()
    kept = {file: file.stat().st_mtime_ns for file in out.glob("train/*.json")}
    output = command(*words)
    assert output.returncode == 0, output.stderr
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert len(Store(out / "train", verify=True)) == 4096
    assert {file.suffix for file in (out / "train").iterdir()} == {".json", ".safetensors", ".parquet"}


def test_training_names_the_file_that_is_broken_and_the_field_that_differs(prepared, tmp_path):
    folder = shutil.copytree(prepared, tmp_path / "store")

    def refusal(*words):
        with pytest.raises(Exception, match="train") as error:
            trained(tmp_path / "run", *from_store(folder, *words))
        return first_line(cause_of(error.value))

    line = refusal("data.caption_words=8")
    assert "differs from this config in text_encoder" in line
    assert f"those of {folder / 'prepare.yaml'}" in line
    assert yaml.safe_load((folder / "prepare.yaml").read_text())["text_encoder"]["length"] == 10
    file = folder / "train" / "00000.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    assert f"{file} is damaged" in refusal("data.verify=true")
    file.write_bytes(data[:-1])
    assert f"{file} has {len(data) - 1} bytes instead of {len(data)}" in refusal()
    file.unlink()
    words = ["experiment=shapes_pixels", *from_store(folder), "trainer.max_steps=1", f"run_dir={tmp_path / 'run'}"]
    assert f"{file} is missing" in only_line_of(command("train.py", *words))


def test_help_teaches_and_is_quick():
    output = command("-X", "importtime", "-m", "dit.cli.prepare", "--help")
    assert output.returncode == 0, output.stderr
    assert "Try:" in output.stdout
    imported = {line.rsplit("|")[-1].strip() for line in output.stderr.splitlines()}
    assert not imported & {"torch", "lightning", "diffusers"}


@pytest.mark.parametrize(("word", "part"), [
    ("splits=[train,test]", "split=test: this data set has train, val, unseen"),
    ("data.module._target_=dit.data.module.PictureData", "latents are prepared for dit.data.module.LatentData or"),
    ("data.module._target_=dit.data.bucket_data.BucketData", "buckets need pictures with sizes of their own, and Shapes"),
    ("data.posterior=sample", "data.posterior=sample: this autoencoder has no posterior"),
])  # fmt: skip
def test_a_wrong_value_ends_in_one_line(word, part, tmp_path):
    with pytest.raises(ValueError, match=part):
        store(tmp_path / "store", word)
