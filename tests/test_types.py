import torch
from torch.utils.data._utils.pin_memory import pin_memory

from dit.types import Batch, CaptionedBatch, Condition


def test_pinning_a_batch_pins_every_tensor_of_it(monkeypatch):
    """DataLoader's way. What is pinned here is marked by a one more than it was."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, device=None: tensor + 1)
    zeros = torch.zeros(3, dtype=torch.long)
    batch = pin_memory(Batch(zeros, Condition(tokens=zeros, mask=zeros, pooled=zeros), zeros))
    parts = (batch.x0, batch.index, batch.condition.tokens, batch.condition.mask, batch.condition.pooled)
    assert all((part == 1).all() for part in parts)
    assert batch.condition.label is None
    [captioned] = pin_memory([CaptionedBatch(zeros, ["a", "b", "c"], zeros)])
    assert captioned.captions == ["a", "b", "c"]
    assert (captioned.images == 1).all()
    assert (captioned.index == 1).all()
