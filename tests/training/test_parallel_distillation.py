"""Distillation in two processes, with whole networks (DDP) and with divided weights (FSDP2), against one process."""

import pytest

from dit.checkpoints.native import BASE, checkpoints_of, read_checkpoint
from dit.runs import load

from ..conftest import command, composed
from .test_distillation import STUDENT
from .test_parallel import assert_same_course, differences, unfinished

LENGTH = ["trainer.max_steps=6", "trainer.val_check_interval=3", "callbacks.previews.every=3", "optimizer.lr=0.01",
          "callbacks.ema.decay=[0.9,0.3]"]  # fmt: skip
TRAINERS = {"ddp": [], "fsdp": ["objective.derivative=difference"]}  # and otherwise a forward derivative


def words_of(teacher, run, *words):
    places = [f"distill={teacher}", f"run_dir={run}", f"cache_dir={run.parent / 'cache'}"]
    return [*STUDENT, *places, *words]


def alone(teacher, run, *words):
    from dit.cli.train import train

    return train(composed("train", words_of(teacher, run, *words)))


def together(teacher, run, *words):
    output = command("train.py", *words_of(teacher, run, *words))
    assert output.returncode == 0, output.stderr
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "adapter"),
    [("ddp", "flow_map"), ("ddp", "flow_map_lora"), ("fsdp", "flow_map"), ("fsdp", "flow_map_lora")],
)
def test_two_processes_distil_as_one_does_and_resume_exactly(tiny_run, tmp_path, trainer, adapter):
    words = [f"adapter={adapter}", *LENGTH, *TRAINERS[trainer]]
    one = alone(tiny_run, tmp_path / "one", *words)
    two = together(tiny_run, tmp_path / "two", f"trainer={trainer}", *words)
    assert_same_course(two, one, 1e-4)
    ours, theirs = (read_checkpoint(checkpoints_of(run)[0]) for run in (two, one))
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    assert ours.get(BASE) == theirs.get(BASE)
    assert (BASE in ours) == (adapter == "flow_map_lora")
    again = together(tiny_run, unfinished(two, tmp_path / "again"), f"trainer={trainer}", *words, "resume=auto")
    assert max(differences(again, two).values()) == 0
    made = [load(run).sample("a large red star on a black background", steps=2).images for run in (one, two)]
    assert (made[0] - made[1]).abs().max() < 1e-4


@pytest.mark.parametrize("objective", ["eulerian", "lagrangian"])
def test_forward_derivatives_of_divided_weights_are_refused(tiny_run, tmp_path, objective):
    with pytest.raises(ValueError, match=r"objective\.derivative=jvp: .* say objective\.derivative=difference"):
        alone(tiny_run, tmp_path / "run", "trainer=fsdp", f"objective={objective}")
