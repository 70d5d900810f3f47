"""Steps whose loss, gradient or update is not finite or an outlier."""

import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from dit import distributed
from dit.checkpoints.native import averages_of, checkpoints_of, read_checkpoint
from dit.checkpoints.snapshots import snapshots_of
from dit.training.diffusion import DiffusionModule
from dit.training.faulty_steps import Step
from dit.training.guard import StabilityGuard
from dit.training.parallel import Sharded

from ..conftest import TINY, command, only_line_of, train_tiny

DIVERGES = ["optimizer.lr=1e12", "lr_schedule.warmup=1", "trainer.max_steps=5", "callbacks.checkpoints.keep=1"]
SKIP = "callbacks.guard.policy=skip"
ROLL_BACK = "callbacks.guard.policy=roll_back"


def finite(path):
    return all(weight.isfinite().all() for weight in read_checkpoint(path)["state_dict"].values())


def weights(run, step):
    return read_checkpoint(run / "checkpoints" / f"step_{step:07d}.ckpt")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def losses(run):
    return [row["train/loss"] for row in csv.DictReader(open(run / "metrics.csv"))]


def spikes(run):
    return {path.stem: json.loads(path.read_text()) for path in sorted((run / "spikes").glob("*.json"))}


@pytest.fixture
def broken(monkeypatch):
    """A function that multiplies the losses of some steps."""
    real = DiffusionModule.loss

    def break_steps(*steps, factor=float("nan"), rank=None):
        def loss(module, batch, part):
            samples = real(module, batch, part)
            mine = rank is None or module.trainer.global_rank == rank
            hit = module.global_step + 1 in steps and mine
            return replace(samples, losses=samples.losses * factor) if hit else samples

        monkeypatch.setattr(DiffusionModule, "loss", loss)

    return break_steps


@pytest.mark.parametrize("interval", [1, 3])
def test_training_stops_and_names_step_remedy_and_the_last_good_checkpoint(tmp_path, interval):
    with pytest.raises(ValueError, match=r"is not finite at step 2: try a lower optimizer\.lr") as error:
        train_tiny(
            tmp_path / "run", *DIVERGES, f"trainer.log_every_n_steps={interval}", "callbacks.checkpoints.every=9"
        )
    [kept] = checkpoints_of(tmp_path / "run")
    assert kept.stem == "step_0000001"
    assert str(kept) in str(error.value)
    assert finite(kept)
    assert not (tmp_path / "run" / "summary.json").exists()


def test_at_the_command_line_it_is_one_line_and_status_2(tmp_path):
    words = [*TINY, *DIVERGES, f"run_dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}"]
    assert "is not finite at step 2" in only_line_of(command("train.py", *words))


def test_a_warning_trains_on_and_keeps_the_finite_checkpoint(tmp_path, capsys):
    run = train_tiny(tmp_path / "run", *DIVERGES, "callbacks.guard.policy=warn", "closing_prompts=1")
    assert capsys.readouterr().err.count("is not finite at step") == 1
    [kept] = checkpoints_of(run)
    assert finite(kept)

    def no_number(text):
        raise AssertionError(f"{text} is no JSON")

    summary = json.loads((run / "summary.json").read_text(), parse_constant=no_number)
    assert summary["train/loss"] is None
    assert summary["steps"] == 5


def test_a_skipped_step_changes_neither_weights_nor_optimizer(tmp_path, broken, capsys):
    broken(4)
    run = train_tiny(tmp_path / "run", SKIP, "callbacks.checkpoints.every=1", "callbacks.checkpoints.keep=9")
    before, after, next_ = (weights(run, step) for step in (3, 4, 5))
    assert same(before["state_dict"], after["state_dict"])
    assert not same(after["state_dict"], next_["state_dict"])
    moments = [c["optimizer_states"][0]["state"][0] for c in (before, after, next_)]
    assert same(moments[0], moments[1])
    assert not same(moments[1], moments[2])
    assert "warning: the loss is not finite at step 4\n" in capsys.readouterr().err
    assert losses(run)[3] == "nan"
    assert json.loads((run / "summary.json").read_text())["steps"] == 6


def test_the_samples_of_a_faulty_step_are_saved_with_their_times_and_losses(tmp_path, broken):
    broken(4)
    run = train_tiny(tmp_path / "run", SKIP, "trainer.accumulate_grad_batches=2", "callbacks.guard.update_every=1")
    [(name, spike)] = spikes(run).items()
    assert (name, spike["step"], spike["action"]) == ("step_0000004", 4, "skip")
    assert spike["fault"] == "the loss is not finite"
    assert spike["loss"] is None
    assert spike["update_norm"] == 0
    assert len(spike["samples"]) == 8
    assert len({row["sample"] for row in spike["samples"]}) == 8
    for row in spike["samples"]:
        assert row.keys() == {"rank", "sample", "epoch", "time", "loss"}
        assert row["loss"] is None
        assert 0 < row["time"] < 1


def test_too_many_skipped_steps_roll_back_and_too_many_rollbacks_stop(tmp_path, broken):
    broken(*range(3, 99))
    with pytest.raises(
        ValueError, match="after 3 skipped steps, after 2 rollbacks to the same checkpoint: try"
    ) as error:
        train_tiny(tmp_path / "run", SKIP, "callbacks.guard.most=2", "trainer.max_steps=20",
                   "callbacks.checkpoints.every=30")  # fmt: skip
    assert "step_0000001.ckpt" in str(error.value)
    actions = [spike["action"] for spike in spikes(tmp_path / "run").values()]
    assert actions == ["skip", "skip", "roll_back"] * 2 + ["skip", "skip", "stop"]


def test_a_finite_outlier_is_skipped_only_with_deviations(tmp_path, broken):
    broken(9, factor=50.0)
    words = ["trainer.max_steps=10", "callbacks.guard.window=8", SKIP]
    assert not spikes(train_tiny(tmp_path / "a", *words))
    found = spikes(train_tiny(tmp_path / "b", *words, "callbacks.guard.deviations=20"))
    assert list(found) == ["step_0000009"]
    assert found["step_0000009"]["fault"].startswith("the loss ")
    assert "20 deviations above the median" in found["step_0000009"]["fault"]
    assert max(row["loss"] for row in found["step_0000009"]["samples"]) > 50


def test_rolling_back_continues_with_the_weights_averages_and_moments_of_the_last_checkpoint(tmp_path, broken, capsys):
    """Steps 3 and 4 are lost: step 5 starts from the checkpoint of step 2, with its own batch and learning rate."""
    words = [ROLL_BACK, "callbacks.checkpoints.keep=9", "callbacks.ema.decay=0.5", "trainer.val_check_interval=6"]
    broken(3)
    run = train_tiny(tmp_path / "run", *words)
    assert "at step 3: continuing with the weights of " in capsys.readouterr().err
    assert all(value.isfinite().all() for value in weights(run, 6)["state_dict"].values())
    [average] = averages_of(weights(run, 6)).values()
    assert all(value.isfinite().all() for value in average.values())
    start, four = weights(run, 2), weights(run, 4)  # rolled back at step 4, which is then saved
    assert same(start["state_dict"], four["state_dict"])
    assert same(start["optimizer_states"][0]["state"][0], four["optimizer_states"][0]["state"][0])
    assert four["optimizer_states"][0]["param_groups"][0]["lr"] != start["optimizer_states"][0]["param_groups"][0]["lr"]
    [spike] = spikes(run).values()
    assert spike["action"] == "roll_back"


def test_snapshots_of_steps_that_are_undone_are_removed_and_the_steps_are_in_the_checkpoint(tmp_path, broken):
    """Step 4 is judged before its checkpoint is written, and undone with step 3."""
    broken(4, factor=1e4)
    run = train_tiny(tmp_path / "run", ROLL_BACK, "callbacks.guard.window=4", "callbacks.guard.deviations=20",
                     "callbacks.posthoc_ema.every=1")  # fmt: skip
    [spike] = spikes(run).values()
    assert spike["action"] == "roll_back"
    assert sorted({step for step, _ in snapshots_of(run)}) == [1, 2, 5, 6]
    assert weights(run, 6)["callbacks"]["StabilityGuard"]["undone"] == [(3, 4)]


def test_a_resumed_run_decides_as_the_uninterrupted_one(tmp_path, broken):
    """The outlier comes after the resumption, so the window of before decides."""
    words = ["callbacks.guard.window=8", SKIP, "callbacks.guard.deviations=20", "callbacks.checkpoints.keep=9"]
    broken(9, factor=50.0)
    whole = train_tiny(tmp_path / "whole", *words, "trainer.max_steps=10", "lr_schedule.decay=0.0")
    part = train_tiny(tmp_path / "part", *words, "trainer.max_steps=6", "lr_schedule.decay=0.0")
    train_tiny(part, *words, "trainer.max_steps=10", "lr_schedule.decay=0.0", f"resume={part}")
    assert list(spikes(part)) == list(spikes(whole)) == ["step_0000009"]
    assert same(weights(part, 10)["state_dict"], weights(whole, 10)["state_dict"])
    states = [weights(run, 10)["callbacks"]["StabilityGuard"] for run in (part, whole)]
    assert states[0] == states[1]


@pytest.mark.parametrize("policy", ["stop", "roll_back", "warn"])
def test_a_good_run_is_the_same_with_every_policy(tiny_run, tmp_path, policy):
    run = train_tiny(tmp_path / "run", f"callbacks.guard.policy={policy}")
    assert losses(run) == losses(tiny_run)
    assert not (run / "spikes").exists()


def test_norms_and_the_loss_of_each_interval_are_logged(tmp_path):
    run = train_tiny(
        tmp_path / "run",
        "trainer.log_every_n_steps=3",
        "callbacks.guard.bins=2",
        "batch_size=16",
        "callbacks.guard.update_every=3",
    )
    first, last = (row for row in csv.DictReader(open(run / "metrics.csv")) if row["train/loss"])
    for row in (first, last):
        assert float(row["train/gradient_norm"]) > 0
        assert float(row["train/update_norm"]) > 0
        assert float(row["train/loss_t0-0.5"]) > 0
        assert float(row["train/loss_t0.5-1"]) > 0


@pytest.mark.parametrize("parts", [1, 4])
def test_the_losses_of_intervals_are_means_over_all_samples(tmp_path, parts):
    words = ["trainer.max_steps=3", f"trainer.accumulate_grad_batches={parts}"]
    run = train_tiny(tmp_path / "run", *words, "trainer.log_every_n_steps=3", "callbacks.guard.bins=1")
    every = train_tiny(tmp_path / "every", *words)
    mean = sum(map(float, losses(every))) / 3
    [row] = (row for row in csv.DictReader(open(run / "metrics.csv")) if row["train/loss"])
    assert float(row["train/loss_t0-1"]) == pytest.approx(mean, rel=1e-6)


def test_a_fault_on_one_rank_is_handled_alike_by_all(tmp_path):
    """Two processes; only rank 1 has a loss that is not finite."""
    torch.multiprocessing.start_processes(run_rank, (tmp_path,), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first["faults"] == second["faults"] == [None, "the loss is not finite", None]
    assert same(first["weights"], second["weights"])
    assert all(value.isfinite().all() for value in first["weights"].values())
    [spike] = spikes(tmp_path).values()
    assert [(row["rank"], row["sample"]) for row in spike["samples"]] == [(0, 0), (0, 2), (1, 1), (1, 3)]
    assert [row["loss"] is None for row in spike["samples"]] == [False, False, True, True]


def test_a_checkpoint_that_is_still_being_written_is_the_last_good_one(tmp_path):
    """Its completion may also remove the one before."""
    strategy, folder = Sharded(), tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "step_0000001.ckpt").touch()
    strategy.broadcast = lambda value: value
    strategy.writer.complete = lambda: (folder / "step_0000001.ckpt").rename(folder / "step_0000002.ckpt")
    guard = StabilityGuard("stop")
    guard.pending = [Step(3, lambda: [float("nan")], [], None)]
    trainer = SimpleNamespace(strategy=strategy, default_root_dir=tmp_path, is_global_zero=True)
    with pytest.raises(ValueError, match=r"the last good checkpoint is .*step_0000002\.ckpt"):
        guard.judge(trainer, None)


class Trainer:
    """The attributes of a trainer that the callback uses."""

    global_step, is_global_zero, default_root_dir, log_every_n_steps = 3, True, "nowhere", 100
    strategy = type(
        "Strategy",
        (),
        {
            "reduce_boolean_decision": staticmethod(lambda decision, all: decision),
            "broadcast": staticmethod(lambda value: value),
        },
    )


def test_weights_are_looked_at_before_a_checkpoint():
    net, guard = torch.nn.Linear(2, 2), StabilityGuard()
    assert guard.passes(Trainer, net)
    with torch.no_grad():
        net.bias[1] = torch.inf
    with pytest.raises(ValueError, match="the weights are not finite at step 3"):
        guard.passes(Trainer, net)
    assert not StabilityGuard("warn").passes(Trainer, net)


def test_another_policy_is_refused():
    with pytest.raises(ValueError, match="policy='pass' is not one of stop, skip, roll_back, warn"):
        StabilityGuard("pass")


@pytest.mark.parametrize("name", ["window", "most", "bins", "update_every", "deviations"])
def test_a_negative_setting_is_refused(name):
    with pytest.raises(ValueError, match=f"callbacks.guard.{name}=-1 must be"):
        StabilityGuard(**{name: -1})


def test_the_update_norm_is_the_length_of_the_step(tmp_path):
    words = ["callbacks.guard.update_every=2", "callbacks.checkpoints.every=1", "callbacks.checkpoints.keep=9"]
    run = train_tiny(tmp_path / "run", *words)
    before, after = (weights(run, step)["state_dict"] for step in (3, 4))
    length = sum((after[name] - before[name]).double().square().sum() for name in after).sqrt()
    [row] = (row for row in csv.DictReader(open(run / "metrics.csv")) if row["step"] == "4")
    assert float(row["train/update_norm"]) == pytest.approx(float(length), rel=1e-4)


def test_a_faulty_update_rolls_back_also_if_steps_are_skipped(tmp_path, monkeypatch):
    real = StabilityGuard.update

    def update(guard, module):
        return [torch.tensor(float("inf"))] if guard.step == 4 else real(guard, module)

    monkeypatch.setattr(StabilityGuard, "update", update)
    run = train_tiny(tmp_path / "run", SKIP, "callbacks.guard.update_every=1", "callbacks.checkpoints.every=3")
    [spike] = spikes(run).values()
    assert (spike["step"], spike["fault"], spike["action"]) == (4, "the update norm is not finite", "roll_back")


def test_the_old_name_of_the_key_is_answered_with_the_new_one(tmp_path):
    line = only_line_of(command("train.py", *TINY, f"run_dir={tmp_path}", "callbacks.finite_loss.policy=warn"))
    assert "callbacks.guard.policy" in line


def run_rank(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = guarded_steps(rank, folder)
    distributed.barrier()
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def guarded_steps(rank, folder):
    """Three steps of data-parallel training with the guard's hooks, as Lightning calls them."""
    from unittest.mock import Mock

    from dit.training.module import SampleLosses, TrainedModule
    from dit.training.optimizer import adamw, warmup_and_decay

    torch.manual_seed(0)
    module = TrainedModule(adamw, warmup_and_decay, seed=0)
    module.net = torch.nn.Linear(2, 1)
    parallel = torch.nn.parallel.DistributedDataParallel(module.net)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    guard, faults = StabilityGuard("skip"), []
    trainer = SimpleNamespace(global_step=0, log_every_n_steps=100, default_root_dir=folder, is_global_zero=rank == 0)
    trainer.strategy = Mock(broadcast=lambda value: value)
    guard.on_train_start(trainer, module)
    for step in range(3):
        index = torch.tensor([0, 2]) + rank
        each = parallel(torch.ones(2, 2) * (1 + index[:, None])).square().flatten()
        each = each * float("nan") if step == 1 and rank == 1 else each
        module.samples = [SampleLosses(index, torch.zeros_like(index), torch.rand(2).double(), each.detach())]
        module.step_loss = each.mean().detach()
        optimizer.zero_grad()
        each.mean().backward()
        guard.on_before_optimizer_step(trainer, module, optimizer)
        faults.append(guard.fault)
        optimizer.step()
        trainer.global_step += 1
        guard.on_train_batch_end(trainer, module)
    return {"faults": faults, "weights": dict(module.net.state_dict())}
