"""A thread loads the next batch while the current one is used, and changes nothing else."""

import itertools
import threading

import pytest
import torch
from torch.utils.data import DataLoader

from dit.data.draws import DrawnBatches
from dit.data.order import KeyedBatches
from dit.data.prefetch import Prefetched

from .test_draws import DRAWS, Rows


class Counted:
    """Endless numbers; `made[n]` is set when n is made. The number `broken` raises."""

    def __init__(self, broken=None):
        self.broken, self.made = broken, [threading.Event() for _ in range(6)]

    def __iter__(self):
        for number in itertools.count():
            self.made[number].set()
            if number == self.broken:
                raise ValueError(f"number {number} cannot be read")
            yield number


def test_one_batch_is_loaded_ahead():
    source = Counted()
    for number in itertools.islice(Prefetched(source), 3):
        assert source.made[number + 1].wait(timeout=60)  # though nobody has called for it
        assert not source.made[number + 2].wait(timeout=0.05)


def test_an_error_is_raised_when_its_batch_is_due():
    source = Counted(broken=2)
    numbers = iter(Prefetched(source))
    assert next(numbers) == 0
    assert next(numbers) == 1
    assert source.made[2].wait(timeout=60)
    with pytest.raises(ValueError, match="number 2 cannot be read"):
        next(numbers)


def test_a_loader_that_ends_gives_all_its_batches():
    assert list(Prefetched([0, None, 2])) == [0, None, 2]
    assert list(Prefetched([])) == []


def test_batches_and_the_global_generator_are_those_of_the_loader():
    order = KeyedBatches(40, 8, seed=1)
    loader = DataLoader(DrawnBatches(Rows(), DRAWS), sampler=order, batch_size=None)

    def walk(loader):
        torch.manual_seed(0)
        batches = iter(loader)
        after = torch.rand(3)  # a DataLoader has drawn a seed
        return after, [(batch.index, batch.noise, batch.uniform) for batch in itertools.islice(batches, 12)]

    expected, found = walk(loader), walk(Prefetched(loader))
    assert torch.equal(found[0], expected[0])
    for ours, theirs in zip(found[1], expected[1], strict=True):
        assert all(map(torch.equal, ours, theirs))


def test_used_batches_are_freed_in_the_thread():
    freed = []

    class Batch:
        def __del__(self):
            freed.append(threading.current_thread().name)

    for count, batch in enumerate(Prefetched(Batch() for _ in range(8))):
        held = batch  # as a trainer, which lets go of it when it has the next one
        if count == 6:
            break
    del batch, held
    assert len(freed) >= 3
    assert all(name.startswith("loader") for name in freed[:3])
