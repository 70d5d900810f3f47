"""A loss or weights that are not finite."""

import json

import pytest
import torch

from dit.checkpoints.native import checkpoints_of, read_checkpoint
from dit.training.finite import FiniteLoss

from ..conftest import TINY, command, only_line_of, train_tiny

DIVERGES = ["optimizer.lr=1e30", "lr_schedule.warmup=1", "trainer.max_steps=5", "callbacks.checkpoints.keep=1"]


def finite(path):
    return all(weight.isfinite().all() for weight in read_checkpoint(path)["state_dict"].values())


@pytest.mark.parametrize("interval", [1, 3])
def test_training_stops_and_names_step_remedy_and_the_last_finite_checkpoint(tmp_path, interval):
    """The first such loss is named, although losses are read only at logging steps."""
    with pytest.raises(ValueError, match=r"loss is not finite at step 2: try a lower optimizer\.lr") as error:
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
    assert "the loss is not finite at step 2" in only_line_of(command("train.py", *words))


def test_a_warning_trains_on_and_keeps_the_finite_checkpoint(tmp_path, capsys):
    run = train_tiny(tmp_path / "run", *DIVERGES, "callbacks.finite_loss.policy=warn", "closing_prompts=1")
    assert capsys.readouterr().err.count("warning: the loss is not finite at step 2") == 1
    [kept] = checkpoints_of(run)
    assert finite(kept)

    def no_number(text):
        raise AssertionError(f"{text} is no JSON")

    summary = json.loads((run / "summary.json").read_text(), parse_constant=no_number)
    assert summary["train/loss"] is None
    assert summary["steps"] == 5


class Trainer:
    """The attributes of a trainer that the callback uses."""

    global_step, is_global_zero, default_root_dir, log_every_n_steps = 3, True, "nowhere", 100
    strategy = type("Strategy", (), {"reduce_boolean_decision": staticmethod(lambda decision, all: decision)})


def test_weights_are_looked_at_before_a_checkpoint():
    net, guard = torch.nn.Linear(2, 2), FiniteLoss()
    assert guard.passes(Trainer, net)
    with torch.no_grad():
        net.bias[1] = torch.inf
    with pytest.raises(ValueError, match="the weights are not finite at step 3"):
        guard.passes(Trainer, net)
    assert not FiniteLoss("warn").passes(Trainer, net)


def test_another_policy_is_refused():
    with pytest.raises(ValueError, match="policy='skip' is neither stop nor warn"):
        FiniteLoss("skip")
