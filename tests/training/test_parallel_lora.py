"""Adapters in two processes, with whole networks (DDP) and with divided weights (FSDP2), against one process."""

import pytest

from dit.checkpoints.native import BASE, checkpoints_of, read_checkpoint
from dit.runs import load_run

from ..conftest import train_tiny
from .test_parallel import WORDS, assert_same_course, differences, train, unfinished

TRAINERS = {"ddp": ["trainer=ddp", "trainer.devices=2"], "fsdp": ["trainer=fsdp"]}


def words_of(base, variant):
    targets = "[attention,mlp,text,head.linear]"  # layers outside of the blocks too
    return [
        f"init={base}",
        f"adapter={variant}",
        "adapter.rank=3",
        f"adapter.targets={targets}",
        "optimizer.lr=0.01",
        *WORDS,
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("trainer", "variant"), [("ddp", "lora"), ("fsdp", "lora"), ("fsdp", "dora")])
def test_two_processes_train_an_adapter_as_one_does_and_resume_exactly(tiny_run, tmp_path, trainer, variant):
    words = words_of(tiny_run, variant)
    one = train_tiny(tmp_path / "one", *words)
    two = train(tmp_path / "two", *TRAINERS[trainer], *words)
    assert_same_course(two, one, 2e-6)
    ours, theirs = (read_checkpoint(checkpoints_of(run)[0]) for run in (two, one))
    assert ours[BASE] == theirs[BASE]
    assert all(".lora_" in name for name in ours["state_dict"])
    again = train(unfinished(two, tmp_path / "again"), *TRAINERS[trainer], *words, "resume=auto")
    assert max(differences(again, two).values()) == 0
    prompt = "a large red star on a black background"
    made = [load_run(run).sample(prompt, steps=2).images for run in (one, two)]
    assert (made[0] - made[1]).abs().max() < 1e-4
