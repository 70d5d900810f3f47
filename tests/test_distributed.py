"""The process primitives in one process, and in two."""

import pytest
import torch

from dit import distributed
from dit.distributed import all_gather, all_reduce_sum, raise_on_all_ranks, rank_and_world_size, rank_batches


def test_a_single_process_needs_no_group():
    assert rank_and_world_size() == (0, 1)
    assert all_gather("a") == ["a"]
    assert all_reduce_sum(1, 2.5) == [1, 2.5]
    distributed.barrier()
    distributed.init_process_group()  # nothing started several processes
    assert not distributed.is_initialized()
    distributed.destroy_process_group()


def test_an_error_keeps_its_kind_in_the_process_that_raised_it():
    with pytest.raises(KeyError), raise_on_all_ranks():
        raise KeyError("x")


@pytest.mark.parametrize(("n", "world_size", "batch_size"), [(7, 1, 3), (7, 3, 2), (3, 3, 5), (64, 4, 64)])
def test_the_ranks_batches_are_a_partition(n, world_size, batch_size, monkeypatch):
    indices = []
    for rank in range(world_size):
        monkeypatch.setattr(distributed, "rank_and_world_size", lambda rank=rank: (rank, world_size))
        batches = list(rank_batches(n, batch_size))
        assert all(1 <= len(batch) <= batch_size for batch in batches)
        indices += [i for batch in batches for i in batch]
    assert sorted(indices) == list(range(n))


def test_more_processes_than_samples_are_refused(monkeypatch):
    monkeypatch.setattr(distributed, "rank_and_world_size", lambda: (0, 4))
    with pytest.raises(ValueError, match="n=3 pictures are fewer than the 4 processes"):
        next(rank_batches(3, 1))


def run_rank(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {"rank": rank_and_world_size(), "gathered": all_gather(10 + rank), "sum": all_reduce_sum(rank, 0.5)}
    try:
        with raise_on_all_ranks():
            if rank == 1:
                raise OSError("rank 1 cannot read")
    except Exception as error:
        found["error"] = (type(error).__name__, str(error))
    distributed.barrier()
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_agree(tmp_path):
    torch.multiprocessing.start_processes(run_rank, (tmp_path,), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert (first["rank"], second["rank"]) == ((0, 2), (1, 2))
    assert first["gathered"] == second["gathered"] == [10, 11]
    assert first["sum"] == second["sum"] == [1.0, 1.0]
    assert first["error"] == ("ValueError", "rank 1 cannot read")
    assert second["error"] == ("OSError", "rank 1 cannot read")
