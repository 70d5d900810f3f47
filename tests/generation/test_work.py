"""The work list."""

from itertools import product

import pytest

from dit.generation.work import Work, seeds_of


def test_the_list_is_the_product_of_its_parts():
    work = Work(["a", "b"], [3, 5, 7], [(8, 8), (16, 8)], models=2, shard_size=5)
    jobs = [work[index] for index in range(len(work))]
    expected = list(product(range(2), [(8, 8), (16, 8)], "ab", [3, 5, 7]))
    assert [(job.model, job.size, job.prompt, job.seed) for job in jobs] == expected
    assert [job.index for job in jobs] == list(range(24))
    assert len({job.name for job in jobs}) == 24
    assert jobs[-1].name == "model_1_prompt_1_seed_7_16x8"
    assert Work(["a"], [3])[0].name == "prompt_0_seed_3"
    with pytest.raises(IndexError):
        work[24]


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_batches_have_one_model_and_one_size_and_all_jobs(size):
    work = Work(["a", "b"], range(3), [(8, 8), (16, 8)], models=2, shard_size=8)
    batches = [jobs for shard in range(work.shards) for jobs in work.batches(shard, [[size, size], [size, 2]])]
    assert [job.index for jobs in batches for job in jobs] == list(range(24))
    assert all(len({(job.model, job.size) for job in jobs}) == 1 for jobs in batches)
    assert max(len(jobs) for jobs in batches if jobs[0].model == 0) == min(size, 6)
    assert all(len(jobs) <= 2 for jobs in batches if jobs[0].model == 1 and jobs[0].size == (16, 8))


def test_a_long_list_takes_no_memory():
    work = Work(["a"] * 10, seeds_of("0-4294967295"))
    assert len(work) == 10 * 2**32
    assert work[len(work) - 1].seed == 2**32 - 1


@pytest.mark.parametrize("text", ["", "a", "3-1", "-1-4", "1-99999999999", "1-4294967296", "0..4"])
def test_other_texts_are_no_seeds(text):
    with pytest.raises(ValueError, match=r"give a number, a list, or FIRST-LAST"):
        seeds_of(text)


def test_a_number_of_pictures_is_so_many_successive_seeds():
    assert list(seeds_of([0], 8)) == list(seeds_of("0-7"))
    assert list(seeds_of(100, 3)) == [100, 101, 102]


@pytest.mark.parametrize(("seeds", "n", "part"), [
    ([0, 1], 8, "give one of them"), ("0-7", 8, "give one of them"), (0, 0, "at least 1"), (4294967295, 2, "seeds up to"),
])  # fmt: skip
def test_a_number_and_several_seeds_are_refused(seeds, n, part):
    with pytest.raises(ValueError, match=part):
        seeds_of(seeds, n)
