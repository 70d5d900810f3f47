"""Averages of several decays: their law, their names, and resuming with them."""

import shutil
from types import SimpleNamespace

import pytest
import torch

from dit.checkpoints.native import averages_of, load_backbone, read_checkpoint, weights_of
from dit.runs import load_run
from dit.training.ema import EMA

from ..conftest import train_tiny

DECAYS = {"ema_0.3": 0.3, "ema_0.1": 0.1, "ema_0.99": 0.99}
WORDS = ["callbacks.ema.decay=[0.3,0.1,0.99]", "callbacks.checkpoints.every=1", "callbacks.checkpoints.keep=9",
         "trainer.accumulate_grad_batches=2", "trainer.max_steps=4", "trainer.val_check_interval=4"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_tiny(tmp_path_factory.mktemp("ema") / "run", *WORDS)


def checkpoint(run, step):
    return read_checkpoint(run / "checkpoints" / f"step_{step:07d}.ckpt")


@pytest.mark.parametrize("name", DECAYS)
def test_an_average_walks_from_step_to_step(run, name):
    for step in (2, 3, 4):
        before, now = averages_of(checkpoint(run, step - 1))[name], checkpoint(run, step)
        decay = min(DECAYS[name], (1 + step) / (10 + step))
        for key, weight in now["state_dict"].items():
            expected = decay * before[key] + (1 - decay) * weight
            torch.testing.assert_close(averages_of(now)[name][key], expected, atol=1e-7, rtol=1e-5)
    assert any((before[key] != weight).any() for key, weight in now["state_dict"].items())


def test_each_is_loaded_by_its_name(run):
    held = checkpoint(run, 4)
    assert weights_of(held) == ["ema", *DECAYS, "raw"]
    loaded = {name: load_run(run, name, "cpu").pipeline.backbone.state_dict() for name in weights_of(held)}
    for name in DECAYS:
        assert all(torch.equal(averages_of(held)[name][f"backbone.{k}"], v) for k, v in loaded[name].items())
    assert all(torch.equal(value, loaded["ema_0.3"][key]) for key, value in loaded["ema"].items())
    assert len({sum(v.double().sum().item() for v in weights.values()) for weights in loaded.values()}) == 4
    with pytest.raises(ValueError, match=r"'ema_0.5' are not .* holds weights=ema, ema_0.3, ema_0.1, ema_0.99, raw"):
        load_run(run, "ema_0.5", "cpu")


def test_resuming_is_exact_with_accumulated_gradients(run, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(run, again)
    (again / "summary.json").unlink()
    for step in (3, 4):
        (again / "checkpoints" / f"step_{step:07d}.ckpt").unlink()
    train_tiny(again, *WORDS, "resume=auto")
    ours, theirs = (averages_of(checkpoint(r, 4)) for r in (again, run))
    assert list(ours) == list(theirs) == list(DECAYS)
    for name, weights in theirs.items():
        assert all(torch.equal(ours[name][key], weight) for key, weight in weights.items()), name


def test_a_checkpoint_without_averages_has_only_raw_weights(run):
    held, pipeline = checkpoint(run, 4), load_run(run, "raw", "cpu").pipeline
    del held["callbacks"]["EMA"]
    assert weights_of(held) == ["raw"]
    with pytest.raises(ValueError, match="it holds weights=raw"):
        load_backbone(pipeline.backbone, held)


@pytest.mark.parametrize("decay", [1.0, -0.1, [], [0.9, 1.5], [0.9, 0.9]])
def test_other_decays_are_refused(decay):
    with pytest.raises(ValueError, match="ema decay="):
        EMA(decay)


class Module(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((3,), 5.0))


def test_an_average_that_a_checkpoint_lacks_starts_from_its_first():
    """An average that it has is continued; without any average, all start as a copy of the current weights."""
    module, ema, new = Module(), EMA([0.9, 0.99]), EMA([0.9, 0.99])
    ema.load_state_dict(
        {"averages": {"ema_0.5": {"weight": torch.full((3,), 1.0)}, "ema_0.9": {"weight": torch.full((3,), 2.0)}}}
    )
    ema.on_train_start(SimpleNamespace(global_step=0), module)
    assert {name: weights["weight"].tolist() for name, weights in ema.averages.items()} == {
        "ema_0.9": [2] * 3,
        "ema_0.99": [1] * 3,
    }
    new.on_train_start(SimpleNamespace(global_step=0), module)
    with torch.no_grad():
        module.weight.add_(1)
    assert [weights["weight"].tolist() for weights in new.averages.values()] == [[5.0] * 3] * 2


@pytest.mark.parametrize("decay", [0, 0.5, [0.0, 0.9]])
def test_decays_in_their_range_are_taken(decay):
    assert list(EMA(decay).decays.values()) == (decay if isinstance(decay, list) else [decay])
