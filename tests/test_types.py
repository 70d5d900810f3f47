import ast
from dataclasses import replace
from pathlib import Path

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


def texts(*lengths, width=6):
    draw = torch.Generator().manual_seed(0)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    tokens = torch.randn(len(lengths), width, 2, generator=draw) * mask[..., None]
    return Condition(tokens=tokens, mask=mask, pooled=torch.randn(len(lengths), 3, generator=draw))


def same(one, other):
    return all(
        a is b if a is None or b is None else torch.equal(a, b)
        for a, b in ((getattr(one, name), getattr(other, name)) for name in ("tokens", "mask", "pooled", "label"))
    )


@pytest.mark.parametrize(("lengths", "longest", "masked"), [
    ((2, 4, 1), 4, True), ((3, 3), 3, False), ((6, 6), 6, False), ((6, 1), 6, True), ((0, 0), 1, True),
])  # fmt: skip
def test_trimming_takes_off_the_padding_that_all_rows_share(lengths, longest, masked):
    whole = texts(*lengths)
    made = whole.trim()
    assert torch.equal(made.tokens, whole.tokens[:, :longest])
    assert torch.equal(made.mask, whole.mask[:, :longest]) if masked else made.mask is None
    assert made.pooled is whole.pooled
    assert same(made.trim(), made)


def test_trimming_keeps_a_real_token_after_padding():
    whole = texts(1, 6)
    whole = replace(whole, mask=whole.mask.flip(1))
    assert same(whole[:1].trim(), whole[:1])


def test_a_mask_that_hides_nothing_is_left_out_and_another_is_kept():
    assert texts(6, 6).unmasked().mask is None
    assert texts(5, 5).unmasked().mask is not None
    labels = Condition(label=torch.zeros(2))
    assert labels.unmasked() is labels
    assert labels.trim() is labels


@pytest.mark.parametrize("lengths", [((2, 4), (1,)), ((4, 4), (1,)), ((4, 4), (4,)), ((1,), (4, 4)), ((6,), (6,))])
def test_texts_of_several_lengths_are_joined_as_if_never_trimmed(lengths):
    wholes = [texts(*part) for part in lengths]
    joined, whole = Condition.cat([part.trim() for part in wholes]), Condition.cat(wholes)
    longest = max(max(part) for part in lengths)
    assert torch.equal(joined.tokens, whole.tokens[:, :longest])
    assert torch.equal(joined.pooled, whole.pooled)
    if joined.mask is None:
        assert whole.mask[:, :longest].all()
    else:
        assert torch.equal(joined.mask, whole.mask[:, :longest])


@pytest.mark.parametrize("length", [1, 3, 5])
def test_a_null_of_another_length_takes_the_place_of_a_text(length):
    whole, null = texts(3, 3), texts(length)
    drop = torch.tensor([False, True])
    made, expected = whole.trim().drop(drop, null.trim()), whole.drop(drop, null)
    assert torch.equal(made.tokens, expected.tokens[:, : made.tokens.shape[1]])
    if length == 3:
        assert made.mask is None
    else:
        assert made.mask.sum(1).tolist() == [3, length]
    assert same(made[:1].trim(), whole[:1].trim())


def test_nothing_else_copies_without_waiting():
    """The guard's copy to the CPU is read after an event of its stream."""
    files = (Path(__file__).parents[1] / "dit").rglob("*.py")
    calls = {file.name for file in files for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.keyword) and node.arg == "non_blocking"}  # fmt: skip
    assert calls == {"types.py", "guard.py"}
