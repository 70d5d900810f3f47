"""Resuming a run: with its config, by one process at a time, and never finished without its last step."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dit.checkpoints.native import checkpoints_of, find_checkpoint, read_checkpoint
from dit.files import try_lock
from dit.training.absolute_paths import make_absolute
from dit.training.diffusion import DiffusionModule
from dit.training.loggers import wandb_run
from dit.training.resume import check_same, differences

from ..conftest import composed, train_tiny


def groups(run: Path) -> list[dict]:
    return read_checkpoint(checkpoints_of(run)[0])["optimizer_states"][0]["param_groups"]


def test_an_extended_run_is_not_finished_until_its_new_end(tmp_path, monkeypatch, capsys):
    run = train_tiny(tmp_path / "run", "trainer.max_steps=3")
    assert (run / "summary.json").is_file()
    real = DiffusionModule.training_step

    def dies(module, batches, part):
        if module.global_step == 4:
            raise RuntimeError("the machine is gone")
        return real(module, batches, part)

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionModule, "training_step", dies)
        with pytest.raises(RuntimeError):
            train_tiny(run, "resume=auto")
    assert not (run / "summary.json").exists()
    train_tiny(run, "resume=auto")
    said = capsys.readouterr().err
    assert "finished and not repeated" not in said
    assert "at step 4" in said
    assert json.loads((run / "summary.json").read_text())["steps"] == 6


def test_a_refused_command_leaves_a_finished_run_finished(tmp_path):
    run = train_tiny(tmp_path / "run", "trainer.max_steps=2")
    with pytest.raises(ValueError, match="seed=0, not 7"):
        train_tiny(run, f"resume={run}", "seed=7")
    assert (run / "summary.json").is_file()
    assert OmegaConf.load(run / "config.yaml").seed == 0


def test_other_values_are_refused_by_name_or_applied_and_recorded(tmp_path, capsys):
    run = train_tiny(tmp_path / "run", "trainer.max_steps=2")
    before = read_checkpoint(checkpoints_of(run)[0])["state_dict"]
    changes = ["optimizer.lr=1e-9", "optimizer.betas=[0.5,0.6]", "optimizer.weight_decay=0.7", "seed=7"]
    with pytest.raises(
        ValueError,
        match=r"has seed=0, not 7; optimizer\.betas=\[0\.9, 0\.95\], not \[0\.5, 0\.6\]; optimizer\.lr=0\.004",
    ):
        train_tiny(run, f"resume={run}", *changes)
    train_tiny(run, f"resume={run}", "resume_override=true", *changes, "lr_schedule.decay=0.0")
    assert "optimizer.lr=1e-09 instead of 0.004" in capsys.readouterr().err
    decayed = [group["weight_decay"] for group in groups(run)]
    assert decayed == [0.7, 0.0]
    for group in groups(run):
        assert group["lr"] <= 1e-9
        assert tuple(group["betas"]) == (0.5, 0.6)
    after = read_checkpoint(checkpoints_of(run)[0])["state_dict"]
    assert all((after[name] - weight).abs().max() < 1e-7 for name, weight in before.items())
    [resumed] = json.loads((run / "environment.json").read_text())["resumed"]
    assert resumed["step"] == 2
    assert resumed["changed"]["optimizer.lr"] == {"from": 0.004, "to": 1e-9}
    assert resumed["changed"].keys() == {
        "optimizer.lr", "optimizer.betas", "optimizer.weight_decay", "seed", "lr_schedule.decay"
    }  # fmt: skip
    assert OmegaConf.load(run / "config.yaml").seed == 7
    train_tiny(run, f"resume={run}", *changes, "lr_schedule.decay=0.0", "trainer.max_steps=7")  # the run's own by now
    assert len(json.loads((run / "environment.json").read_text())["resumed"]) == 2


@pytest.mark.slow
def test_an_extension_follows_the_longer_schedule_from_its_first_step(tmp_path):
    words = ["lr_schedule.warmup=1", "lr_schedule.decay=1.0", "optimizer.lr=0.006", "callbacks.checkpoints.every=1"]
    run = train_tiny(tmp_path / "run", *words, "trainer.max_steps=3")
    train_tiny(run, f"resume={run}", *words, "trainer.max_steps=4")
    assert groups(run)[0]["lr"] == pytest.approx(0)  # after the last step
    run = train_tiny(tmp_path / "other", *words, "trainer.max_steps=3")
    train_tiny(run, f"resume={run}", *words, "trainer.max_steps=6")
    rates = {f.stem: read_checkpoint(f)["optimizer_states"][0]["param_groups"][0]["lr"] for f in checkpoints_of(run)}
    assert rates["step_0000004"] == pytest.approx(0.006 * 2 / 6)


def plain(*words: str) -> dict:
    return OmegaConf.to_container(composed("train", ["name=x", *words]), resolve=True)


@pytest.mark.parametrize(
    "word",
    [
        "trainer.max_steps=9", "trainer.devices=4", "trainer.strategy=ddp", "trainer.accumulate_grad_batches=2", "name=y",
        "trainer.max_time='00:01:00:00'", "callbacks.previews.every=5", "callbacks.checkpoints.keep=9", "wandb.mode=online",
        "run_dir=/elsewhere", "cache_dir=/elsewhere", "sampler=ddim", "data.module.workers=3", "text_encoder.words=[a,b,c]",
    ],
)  # fmt: skip
def test_what_may_differ(word):
    assert not differences(plain("text_encoder.words=[a,b]"), plain("text_encoder.words=[a,b]", word))


@pytest.mark.parametrize(
    "word",
    [
        "seed=1", "batch_size=16", "optimizer.lr=1", "lr_schedule.warmup=3", "callbacks.ema.decay=0.5", "data.flip=true",
        "trainer.precision=bf16-mixed", "trainer.gradient_clip_val=2", "caption_dropout=0.5", "density=uniform",
        "text_encoder.words=[b,a]", "text_encoder.words=[a]",
    ],
)  # fmt: skip
def test_what_may_not_differ_without_resume_override(word):
    old, new = plain("text_encoder.words=[a,b]"), plain("text_encoder.words=[a,b]", word)
    with pytest.raises(ValueError, match="resume_override=true"):
        check_same(old, new, override=False)
    assert check_same(old, new, override=True)


@pytest.mark.parametrize("word", ["backbone.width=96", "task=clip", "optimizer=muon", "init=elsewhere"])
def test_what_cannot_change_at_all(word):
    with pytest.raises(ValueError, match="this cannot change"):
        check_same(plain(), plain(word), override=True)


def test_init_need_not_be_repeated():
    assert not differences(plain("init=elsewhere"), plain())


def test_a_directory_is_trained_in_by_one_process(tiny_run, tmp_path):
    run = tmp_path / "run"
    lock = try_lock(run / ".lock")
    for words in ([], ["resume=auto"]):
        with pytest.raises(ValueError, match=f"^{run} is being trained by another process"):
            train_tiny(run, *words)
    assert not checkpoints_of(run)
    child = os.fork()
    if child == 0:  # such as a worker that outlives its parent
        signal.pause()
    lock.close()
    try:
        assert train_tiny(run, "resume=auto", "trainer.max_steps=1") == run
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_the_way_out_of_broken_checkpoints_is_not_the_way_in(tmp_path):
    run = train_tiny(tmp_path / "run", "trainer.max_steps=1")
    (run / "summary.json").unlink()
    for file in checkpoints_of(run):
        file.write_bytes(b"broken")
    with pytest.raises(ValueError, match="none of its 1 checkpoints can be read; delete") as error:
        train_tiny(run, "resume=auto")
    assert "resume=auto" not in str(error.value)
    with pytest.raises(ValueError, match="none of its 1 checkpoints can be read; name another run"):
        find_checkpoint(run)


@pytest.mark.slow
def test_an_earlier_checkpoint_is_gone_on_from_in_a_directory_of_its_own(tmp_path):
    run = train_tiny(tmp_path / "run", "trainer.max_steps=4")
    earlier = run / "checkpoints" / "step_0000002.ckpt"
    with pytest.raises(ValueError, match=r"newer checkpoints, up to step_0000004\.ckpt; give run_dir=DIR"):
        train_tiny(run, f"resume={earlier}")
    assert checkpoints_of(train_tiny(tmp_path / "branch", f"resume={earlier}"))[0].stem == "step_0000006"
    assert checkpoints_of(run)[0].stem == "step_0000004"


def test_a_folder_of_runs_names_them(tmp_path):
    for name in ("sweep/0", "sweep/1", "sweep/2", "sweep/3", "alone"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "step_0000001.ckpt").touch()
    with pytest.raises(
        ValueError, match=r"4 runs are below it: name one of .*sweep/0, .*sweep/1, .*sweep/2 and 1 more"
    ):
        find_checkpoint(tmp_path / "sweep")
    with pytest.raises(ValueError, match="5 runs are below it"):
        find_checkpoint(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="train it first"):
        find_checkpoint(tmp_path / "empty")


def test_files_of_a_config_are_absolute_and_names_are_left(tmp_path, monkeypatch):
    for folder in ("pics", "vae", "a red cat"):
        (tmp_path / folder).mkdir()
    (tmp_path / "inception.pt").touch()
    monkeypatch.chdir(tmp_path)
    words = [
        "experiment=folder",
        "data.path=pics",
        "autoencoder=kl",
        "autoencoder.path=vae",
        "data.prompts=[a red cat]",
    ]
    cfg = composed("train", [*words, "metric=[fid]", "metric.fid.extractor.weights=inception.pt", "text_encoder=t5"])
    make_absolute(cfg)
    assert cfg.data.path == cfg.data.module.train.path == str(tmp_path / "pics")
    assert cfg.autoencoder.path == str(tmp_path / "vae")
    assert cfg.metric.fid.extractor.weights == str(tmp_path / "inception.pt")
    assert cfg.text_encoder.name == "google/t5-v1_1-xxl"
    assert cfg.data.prompts == ["a red cat"]
    cfg = composed("train", ["text_encoder=open_clip", "text_encoder.model=local-dir:vae", "init=vae"])
    (tmp_path / "shapes_autoencoder").mkdir()
    make_absolute(cfg)
    assert cfg.text_encoder.model == f"local-dir:{tmp_path / 'vae'}"
    assert cfg.init == str(tmp_path / "vae")
    assert cfg.autoencoder.path == "shapes_autoencoder"  # which ships with dit


def test_a_resumed_run_is_the_same_run_of_wandb(tmp_path):
    ids = []
    for _ in range(2):
        run = wandb_run(tmp_path, "dit", "offline", None, "train", {"seed": len(ids)})
        run.log({"loss": 1.0})
        ids.append(run.id)
        run.finish()
        time.sleep(1)  # wandb names the folder of a process by the second
    assert ids[0] == ids[1] == (tmp_path / "wandb_id").read_text().strip()
    assert len(list(tmp_path.glob(f"wandb/offline-run-*-{ids[0]}"))) == 2
