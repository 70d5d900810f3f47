"""The counter of what waits for a device counts what it should."""

import pytest
import torch

from .waiting import Waiting

META = torch.device("meta")


@pytest.mark.parametrize(("work", "copies", "made"), [
    (lambda x: x * 2 + torch.full((3,), 2.0, device=META), 0, 0),
    (lambda x: x.new_full((3,), 2.0) + torch.arange(3, device=META), 0, 0),
    (lambda x: torch.tensor([1.0, 2.0, 3.0], device=META) + x, 0, 1),
    (lambda x: torch.zeros(3).to(META) + x, 1, 0),
    (lambda x: x.clone().copy_(torch.zeros(3)), 1, 0),
    (lambda x: x.to(torch.float64), 0, 0),
])  # fmt: skip
def test_copies_and_tensors_of_python_numbers_are_counted(work, copies, made):
    x = torch.empty(3, device=META)
    with Waiting() as waiting:
        work(x)
    assert (len(waiting.copies), len(waiting.made)) == (copies, made)


@pytest.mark.parametrize(
    "work", [lambda x: x[0].item(), lambda x: x.nonzero(), lambda x: bool(x.any()), lambda x: x[x > 0]]
)
def test_what_reads_a_value_is_counted_or_raises(work):
    with Waiting() as waiting:
        try:
            work(torch.empty(3, device=META))
        except (RuntimeError, NotImplementedError):
            return
    assert waiting.reads
