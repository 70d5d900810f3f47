"""Distribution matching from the command line to samples, its fake network in checkpoints, and two processes."""

import shutil
from dataclasses import replace

import pytest
import torch
from hydra.errors import InstantiationException
from safetensors.torch import load_file

from dit.adapters.low_rank import base_state
from dit.checkpoints.native import (
    BASE,
    CONFIG,
    averages_of,
    checkpoints_of,
    find_checkpoint,
    read_checkpoint,
    trained_of,
)
from dit.cli.export import export
from dit.cli.train import train
from dit.diffusion.distribution_matching import DistributionMatching
from dit.diffusion.guidance import ClassifierFree, Embedded
from dit.runs import load, second_run
from dit.training.distribution_matching import FAKE, DistributionMatchingModule
from dit.training.inherit import inherit
from dit.training.tasks import diffusion

from ..conftest import command, composed, train_tiny
from .test_distillation import STUDENT, distil

WORDS = [word for word in STUDENT if not word.startswith("experiment=")]
SHORT = ["trainer.max_steps=3", "objective.fake_updates=2", "objective.steps=2", "lr_schedule.decay=0.5"]
CAPTION = "a large red star on a black background"


@pytest.fixture(scope="module")
def student(tiny_run, tmp_path_factory):
    return distil(tiny_run, tmp_path_factory.mktemp("student") / "run")


def words_of(teacher, student, folder, *words):
    places = [f"distill={teacher}", f"init={student}", f"run_dir={folder}", f"cache_dir={student.parent / 'cache'}"]
    return ["experiment=distill_dmd", *WORDS, *SHORT, *places, *words]


def matched(teacher, student, folder, *words):
    return train(composed("train", words_of(teacher, student, folder, *words)))


@pytest.fixture(scope="module")
def run(tiny_run, student):
    return matched(tiny_run, student, student.parent / "matched")


class OwnMatching(DistributionMatching):
    """A user's variant of the objective."""


def test_a_variant_of_the_objective_trains_a_fake_network_too(tiny_run, student, tmp_path):
    own = f"objective._target_={OwnMatching.__module__}.OwnMatching"
    cfg = composed("train", words_of(tiny_run, student, tmp_path, own))
    inherit(cfg)
    module, _ = diffusion(cfg)
    assert isinstance(module, DistributionMatchingModule)


def tensors(tree, name=""):
    """Returns all tensors and numbers of nested dicts and lists by their places."""
    if isinstance(tree, dict):
        return {place: t for key, value in tree.items() for place, t in tensors(value, f"{name}/{key}").items()}
    if isinstance(tree, list | tuple):
        return {place: t for i, value in enumerate(tree) for place, t in tensors(value, f"{name}/{i}").items()}
    return {name: tree}


def state_of(folder):
    """Returns all that training goes on with: weights, optimizers, averages and the fake network."""
    checkpoint = find_checkpoint(folder)[1]
    kept = {key: checkpoint[key] for key in ("state_dict", "optimizer_states", FAKE)}
    return tensors(kept | {"averages": averages_of(checkpoint)})


def differing(one, other):
    assert one.keys() == other.keys()
    return [
        name for name, value in one.items()
        if not (torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name])
    ]  # fmt: skip


def test_it_goes_on_from_the_student_and_moves_it_and_the_fake_network(tiny_run, student, run):
    before, after = (load(folder) for folder in (student, run))
    assert after.config.adapter == before.config.adapter
    assert after.config.objective.largest_scale == before.config.objective.largest_scale == 8
    start, end = (one.pipeline.backbone.state_dict() for one in (before, after))
    fake = find_checkpoint(run)[1][FAKE]["network"]
    assert start.keys() == end.keys() == fake.keys()
    for moved in (end, fake):
        change = max(float((moved[name] - value).abs().max()) for name, value in start.items())
        assert 0 < change < 0.01
    assert differing(end, dict(fake))
    taught = second_run(str(tiny_run)).pipeline.backbone  # the network that was the teacher, cached
    assert not differing(taught.state_dict(), load(tiny_run).pipeline.backbone.state_dict())
    assert all(p.grad is None for p in taught.parameters())


def test_the_fake_network_has_its_number_of_updates(run):
    steps = [s["step"] for s in find_checkpoint(run)[1][FAKE]["optimizer"]["state"].values()]
    assert {float(step) for step in steps} == {6.0}
    assert {float(s["step"]) for s in find_checkpoint(run)[1]["optimizer_states"][0]["state"].values()} == {3.0}


def test_a_run_that_is_interrupted_and_resumed_equals_one_that_is_not(tiny_run, student, run):
    shorter = matched(tiny_run, student, student.parent / "shorter", "trainer.max_steps=1")
    resumed = matched(tiny_run, student, shorter, "resume=auto")
    one, other = state_of(run), state_of(resumed)
    shaped = [name for name in differing(one, other) if not name.endswith("/initial_lr")]
    assert shaped == []


def test_rolling_back_also_restores_the_fake_network(tiny_run, student, tmp_path, monkeypatch):
    real = DistributionMatchingModule.loss

    def loss(module, batch, part):
        samples = real(module, batch, part)
        return replace(samples, losses=samples.losses * float("nan")) if module.global_step == 2 else samples

    monkeypatch.setattr(DistributionMatchingModule, "loss", loss)
    words = ["callbacks.guard.policy=roll_back", "callbacks.checkpoints.every=2", "callbacks.checkpoints.keep=9"]
    good, last = sorted((matched(tiny_run, student, tmp_path / "run", *words) / "checkpoints").iterdir())[-2:]
    one, other = (tensors(read_checkpoint(path)[FAKE]) for path in (good, last))
    assert (good.stem, last.stem) == ("step_0000002", "step_0000003")
    assert differing(one, other) == []


def test_it_is_sampled_and_exported_like_any_student_without_the_fake_network(run, tmp_path):
    opened = load(run)
    images = [opened.sample([CAPTION], sampler="flow_map", steps=n, guidance=Embedded(2.0)).images for n in (1, 2)]
    assert not torch.equal(*images)
    with pytest.raises(ValueError, match=r"guidance.scale=9: the network was trained with scales from 1 to 8"):
        opened.sample(CAPTION, guidance=9.0)
    assert not any("fake" in name for name in opened.pipeline.backbone.state_dict())
    with pytest.raises(ValueError, match="which no other library supports"):
        export(composed("export", [f"ckpt={run}", f"out={tmp_path}", "format=diffusers"]))
    out = export(composed("export", [f"ckpt={run}", f"out={tmp_path}", "format=safetensors"]))
    assert load_file(out / "model.safetensors").keys() == opened.pipeline.backbone.state_dict().keys()


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("objective.fake_updates=0", "objective.fake_updates=0 must be at least 1"),
        ("objective.scale=9", "objective.scale=9: the student was trained with scales from 1 to 8"),
        ("trainer=fsdp", "choose trainer=default or ddp, not fsdp"),
        ("trainer.accumulate_grad_batches=2", "say accumulate_grad_batches=1"),
        ("distill=null", "needs a teacher, and there is none: say distill=RUN"),
    ],
    ids=lambda value: value.partition("=")[0],
)
def test_settings_that_do_not_fit_are_refused(tiny_run, student, tmp_path, word, line):
    with pytest.raises((ValueError, InstantiationException), match=line):
        matched(tiny_run, student, tmp_path / "run", word)


def test_a_student_that_is_no_flow_map_is_refused(tiny_run, tmp_path):
    with pytest.raises(ValueError, match=r"is no flow map, .* make one with experiment=distill first"):
        matched(tiny_run, tiny_run, tmp_path / "run")


@pytest.fixture(scope="module")
def low_rank(tiny_run, tmp_path_factory):
    words = ["adapter=flow_map_lora", "adapter.rank=4", "optimizer.lr=0.02", "lr_schedule.warmup=0"]
    return distil(tiny_run, tmp_path_factory.mktemp("low_rank") / "run", *words)


@pytest.mark.slow
def test_a_student_as_an_adapter_goes_on_as_that_adapter_of_its_teacher(tiny_run, low_rank, tmp_path):
    checkpoint = find_checkpoint(low_rank)[1]
    cfg = composed("train", words_of(tiny_run, low_rank, tmp_path))
    inherit(cfg)
    module, _ = diffusion(cfg)
    assert isinstance(module, DistributionMatchingModule)
    assert module.base == checkpoint[BASE]
    taught = load(tiny_run).pipeline.backbone.state_dict()
    for network in (module.backbone, module.fake_score.network):
        assert differing(base_state(network), taught) == []
        trained = {f"backbone.{name}": p.detach() for name, p in trained_of(network).items()}
        assert differing(trained, averages_of(checkpoint)["ema_0.99"]) == []
    assert module.fake_score.stored().keys() == trained_of(module.backbone).keys()


@pytest.mark.slow
def test_a_student_as_an_adapter_trains_resumes_and_needs_its_teacher_alone(tiny_run, low_rank, tmp_path):
    shutil.copytree(low_rank, tmp_path / "student")
    words = ["callbacks.checkpoints.every=2", "callbacks.checkpoints.keep=9"]
    after, copy = matched(tiny_run, tmp_path / "student", tmp_path / "run", *words), tmp_path / "copy"
    start, end = (find_checkpoint(folder)[1] for folder in (low_rank, after))
    assert end[BASE] == start[BASE]
    first = averages_of(start)["ema_0.99"]
    for moved in (end["state_dict"], {f"backbone.{name}": t for name, t in end[FAKE]["network"].items()}):
        assert moved.keys() == first.keys()
        assert 0 < max(float((moved[name] - value).abs().max()) for name, value in first.items()) < 0.01
    shutil.copytree(after, copy)
    (copy / "summary.json").unlink()
    checkpoints_of(copy)[0].unlink()
    resumed = matched(tiny_run, tmp_path / "student", copy, *words, "resume=auto")
    assert differing(state_of(resumed), state_of(after)) == []
    shutil.rmtree(tmp_path / "student")
    ordinary = {"sampler": "euler", "guidance": ClassifierFree(2.0), "steps": 2}
    opened = load(after)
    opened.scale_adapters(0)
    assert torch.equal(opened.sample([CAPTION], **ordinary).images, load(tiny_run).sample([CAPTION], **ordinary).images)


def test_a_flow_map_is_continued_by_the_same_adapter_alone(student, tmp_path):
    with pytest.raises(ValueError, match=r"was trained with the inputs duration, guidance_scale of an adapter"):
        train_tiny(tmp_path / "run", f"init={student}")
    with pytest.raises(ValueError, match=r"it has adapter.absent.duration=0.0, not 1.0; say these values"):
        train_tiny(tmp_path / "run", f"init={student}", "adapter=flow_map", "adapter.absent.duration=1.0")
    words = ["adapter=flow_map", "objective=semigroup", "sampler=flow_map", "guidance=embedded", "trainer.max_steps=1"]
    path, checkpoint = find_checkpoint(student)
    del checkpoint[CONFIG]["adapter"]["clock"]  # as of a version before this option
    torch.save(checkpoint, tmp_path / path.name)
    run = train_tiny(tmp_path / "run", f"init={tmp_path / path.name}", "optimizer.lr=1e-12", *words)
    embedding = "time.extra.duration.up.weight"  # random in a new adapter
    one, other = (load(folder).pipeline.backbone.state_dict()[embedding] for folder in (student, run))
    torch.testing.assert_close(other, one, rtol=0, atol=1e-6)


def test_inputs_are_not_added_to_a_network_of_another_time(tiny_run, tmp_path):
    time = "+prediction.c_noise={_target_:dit.diffusion.prediction.unscaled_time,_partial_:true}"
    with pytest.raises(ValueError, match=r"another prediction.* prediction.c_noise._target_=absent, not \S*unscaled"):
        train_tiny(tmp_path / "run", f"init={tiny_run}", "adapter=flow_map", time)


def test_a_teacher_of_another_latent_space_is_refused(student, tmp_path):
    other = train_tiny(tmp_path / "other", "experiment=shapes", "trainer.max_steps=1", "trainer.val_check_interval=1")
    with pytest.raises(ValueError, match=r"differs from the student in its autoencoder"):
        matched(other, student, tmp_path / "run")


def test_a_teacher_without_null_condition_is_refused(student, tmp_path):
    other = train_tiny(tmp_path / "other", "caption_dropout=0", "guidance.scale=1")
    with pytest.raises(ValueError, match=r"was trained without the null condition"):
        matched(other, student, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["student", "low_rank"])
def test_two_processes_train_like_one(tiny_run, kind, request, tmp_path):
    start = request.getfixturevalue(kind)
    alone = request.getfixturevalue("run") if kind == "student" else matched(tiny_run, start, tmp_path / "one")
    output = command("train.py", *words_of(tiny_run, start, tmp_path / "two", "trainer=ddp", "trainer.devices=2"))
    assert output.returncode == 0, output.stderr
    one, two = state_of(alone), state_of(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6, msg=name)
