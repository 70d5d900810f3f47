import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from dit.types import Batch, CaptionedBatch, Condition, to_device


def test_pinning_a_batch_pins_every_tensor_of_it(monkeypatch):
    """DataLoader's way. What is pinned here is marked by a one more than it was."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, device=None: tensor + 1)
    zeros = torch.zeros(3, dtype=torch.long)
    batch = pin_memory(Batch(zeros, Condition(tokens=zeros, mask=zeros, pooled=zeros), zeros, zeros))
    parts = (batch.x0, batch.condition.tokens, batch.condition.mask, batch.condition.pooled)
    assert all((part == 1).all() for part in parts)
    assert batch.condition.label is None
    [captioned] = pin_memory([CaptionedBatch(zeros, ["a", "b", "c"], zeros, zeros)])
    assert captioned.captions == ["a", "b", "c"]
    assert (captioned.images == 1).all()
    assert (captioned.index == 0).all()  # numbers that name random streams are read on the CPU alone


@pytest.mark.parametrize(("device", "waits"), [("cuda", False), ("cpu", True), ("meta", True), ("mps", True)])
def test_a_copy_is_left_under_way_from_pinned_memory_to_cuda_alone(monkeypatch, device, waits):
    """A copy to the CPU that is not waited for is read before it arrives."""
    done = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: done.append("pinned") or tensor)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device, **how: done.append(how) or tensor)
    batch = Batch(torch.zeros(1), Condition(pooled=torch.zeros(1)), torch.zeros(1), torch.zeros(1))
    to_device(batch.x0, device), batch.to(device), CaptionedBatch(batch.x0, ["a"], batch.index, batch.epoch).to(device)
    assert done == [{}] * 4 if waits else done == ["pinned", {"non_blocking": True}] * 4
