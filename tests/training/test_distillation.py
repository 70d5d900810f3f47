"""Distillation of a run into a flow map, from the command line to samples, and its gradients on two processes."""

import csv
import json

import pytest
import torch

from dit.checkpoints.native import averages_of, find_checkpoint
from dit.cli.evaluate import evaluate
from dit.diffusion.guidance import Embedded
from dit.layers.embeddings import extra_inputs
from dit.runs import load

from ..conftest import TINY, command, composed, only_line_of, train_tiny

STUDENT = ["experiment=distill", "trainer.max_steps=4", "trainer.val_check_interval=4", "trainer.log_every_n_steps=1",
           "trainer.accelerator=cpu", "callbacks.checkpoints.every=2", "batch_size=8", "wandb.mode=disabled"]  # fmt: skip


def distil(run, folder, *words):
    from dit.cli.train import train

    places = [f"distill={run}", f"run_dir={folder}", f"cache_dir={folder.parent / 'cache'}"]
    return train(composed("train", [*STUDENT, *places, *words]))


@pytest.fixture(scope="module")
def student(tiny_run, tmp_path_factory):
    return distil(tiny_run, tmp_path_factory.mktemp("student") / "run")


def test_the_student_has_the_parts_of_its_teacher(tiny_run, student):
    taught, own = load(tiny_run).config, load(student).config
    for name in ("backbone", "path", "prediction", "text_encoder", "autoencoder", "data", "metric"):
        assert own[name] == taught[name], name
    assert extra_inputs(load(student).pipeline.backbone) == ["duration", "guidance_scale"]


def test_the_student_starts_as_its_teacher_and_moves(tiny_run, student):
    before, after = (load(run).pipeline.backbone.state_dict() for run in (tiny_run, student))
    assert before.keys() < after.keys()
    moved = [
        float((after[name] - tensor).abs().max()) for name, tensor in before.items() if tensor.dtype.is_floating_point
    ]
    assert 0 < max(moved) < 0.05


def test_a_sweep_walks_the_map_with_learned_guidance_at_one_call_a_step(student, tmp_path):
    words = [
        "sampler=flow_map",
        "guidance=embedded",
        "guidance.scale=[1,4]",
        "steps=[1,2]",
        "n=4",
        "references=32",
        "shown=1",
    ]
    places = [f"ckpt={student}", f"out={tmp_path}", f"cache_dir={student.parent / 'cache'}", "wandb.mode=disabled"]
    rows = list(csv.DictReader(open(evaluate(composed("evaluate", [*words, *places])) / "results.csv")))
    assert {(row["steps"], row["guidance"], float(row["nfe"])) for row in rows} == {
        (steps, scale, float(steps)) for steps in ("1", "2") for scale in ("1.0", "4.0")
    }


def test_the_scale_and_the_duration_change_the_samples(student):
    run = load(student)
    torch.manual_seed(0)
    for embedding in run.pipeline.backbone.time.extra.values():  # of four steps' training too small to see
        torch.nn.init.normal_(embedding.down.weight)
    prompts = ["a large red star on a black background"]

    def pixels(sampler, scale):
        return run.sample(prompts, sampler=sampler, steps=2, guidance=Embedded(scale)).images

    assert not torch.equal(pixels("flow_map", 1.0), pixels("flow_map", 4.0))
    assert not torch.equal(pixels("flow_map", 1.0), pixels("euler", 1.0))


def test_an_ordinary_run_is_not_walked_as_a_map(tiny_run):
    with pytest.raises(ValueError, match="sampler=flow_map needs a network that was trained as a flow map"):
        load(tiny_run).sample("a star", sampler="flow_map")
    with pytest.raises(
        ValueError, match="guidance=embedded needs a network that was trained with the scale as an input"
    ):
        load(tiny_run).sample("a star", guidance="embedded")


def test_a_scale_outside_of_training_is_refused(student):
    run = load(student)
    with pytest.raises(ValueError, match=r"guidance.scale=9: the network was trained with scales from 1 to 8"):
        run.sample("a star", guidance=9.0)


@pytest.mark.slow
def test_a_student_with_a_slower_clock_is_fitted_once_and_read_back(tiny_run, tmp_path, capsys):
    still = ["adapter.clock=64", "optimizer.lr=1e-12", "trainer.max_steps=1", "lr_schedule.warmup=0"]
    still.append("lr_schedule.decay=0")
    run = distil(tiny_run, tmp_path / "run", *still)
    assert capsys.readouterr().err.count("adapter.clock=64: the refitted time embedding is off by") == 1
    times, (teacher, student) = torch.linspace(0, 1000, 500), (load(r).pipeline.backbone.time for r in (tiny_run, run))
    expected, found = teacher(times), student(times)
    assert student.rate == 0.064
    assert float((found - expected).norm() / (expected - expected.mean(0)).norm()) < 0.9
    distil(tiny_run, tmp_path / "next", f"init={run}", *still)
    assert "refitted" not in capsys.readouterr().err
    torch.testing.assert_close(load(tmp_path / "next").pipeline.backbone.time(times), found, rtol=0, atol=1e-5)


def test_a_run_without_null_condition_teaches_no_guidance(tmp_path):
    run = train_tiny(tmp_path / "run", "caption_dropout=0", "guidance.scale=1")
    with pytest.raises(ValueError, match=r"caption_dropout above 0, or set objective.largest_scale=null"):
        distil(run, tmp_path / "student")
    distil(run, tmp_path / "unguided", "objective.largest_scale=null", "guidance=classifier_free", "guidance.scale=1")


def test_another_latent_space_than_the_teachers_is_refused(tiny_run, tmp_path):
    words = [*STUDENT, f"distill={tiny_run}", f"run_dir={tmp_path / 'run'}", "autoencoder=shapes"]
    line = only_line_of(command("train.py", *words))
    assert "autoencoder=shapes: the experiment takes autoencoder from the run" in line
    assert not (tmp_path / "run").exists()


def test_it_resumes_exactly(tiny_run, student):
    shorter = distil(tiny_run, student.parent / "shorter", "trainer.max_steps=2", "lr_schedule.decay=0.5")
    longer = distil(tiny_run, student.parent / "longer", "lr_schedule.decay=0.5")
    resumed = distil(tiny_run, shorter, "resume=auto", "lr_schedule.decay=0.5")
    (one,), (other,) = (averages_of(find_checkpoint(run)[1]).values() for run in (resumed, longer))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("identity", ["eulerian", "lagrangian", "semigroup"])
def test_from_nothing_each_identity_trains_alike_on_two_processes(identity, tmp_path):
    words = ["adapter=flow_map", f"objective={identity}", "sampler=flow_map", "guidance=embedded", "trainer.max_steps=2",
             "callbacks.previews.every=null"]  # fmt: skip
    one = train_tiny(tmp_path / "one", *words)
    places = [f"run_dir={tmp_path / 'two'}", f"cache_dir={tmp_path / 'cache'}", "trainer=ddp", "trainer.devices=2"]
    output = command("train.py", *TINY, *words, *places)
    assert output.returncode == 0, output.stderr
    first, second = (find_checkpoint(run)[1]["state_dict"] for run in (one, tmp_path / "two"))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-4, atol=1e-6)
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["steps"] == 2
