"""Buckets: the nearest size, batches of one size, every sample once an epoch, and an order without state."""

import itertools
import math

import pytest

from dit.data.buckets import BucketBatches, aspect_ratio_bins, batch_sizes, nearest_bin


def take(n, *args, **options):
    return list(itertools.islice(BucketBatches(*args, **options), n))


@pytest.mark.parametrize("size", [256, 512, 1024])
def test_the_bins_are_those_of_diffusers(size):
    from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha as pixart

    theirs = {(int(h), int(w)) for h, w in getattr(pixart, f"ASPECT_RATIO_{size}_BIN").values()}
    assert set(aspect_ratio_bins(size, 16)) == theirs


@pytest.mark.parametrize(("size", "multiple"), [(32, 4), (64, 16), (768, 16), (512, 64)])
def test_bins_of_other_sizes_keep_the_area_and_the_multiple(size, multiple):
    bins = aspect_ratio_bins(size, multiple)
    assert (size, size) in bins
    assert all(h % multiple == 0 and w % multiple == 0 for h, w in bins)
    assert all(0.6 < h * w / size**2 < 1.6 for h, w in bins)


def test_a_size_between_two_multiples_is_refused():
    with pytest.raises(ValueError, match=r"data\.size=100 must be a multiple of 16"):
        aspect_ratio_bins(100, 16)


@pytest.mark.parametrize(("height", "width"), [(100, 100), (480, 640), (640, 480), (3000, 100), (99, 100), (77, 131)])
def test_a_picture_is_in_the_nearest_bucket(height, width):
    bins = aspect_ratio_bins(512, 16)
    chosen = bins[nearest_bin(bins, height, width)]
    off = abs(math.log(chosen[0] / chosen[1] * width / height))
    assert off == min(abs(math.log(h / w * width / height)) for h, w in bins)


def test_batches_have_about_the_same_number_of_pixels():
    bins = aspect_ratio_bins(512, 16)
    pixels = [h * w * n for (h, w), n in zip(bins, batch_sizes(bins, 256, 512, 8), strict=True)]
    assert max(pixels) / min(pixels) < 1.06
    assert batch_sizes([(512, 512)], 256, 512, 8) == [256]


COUNTS, SIZES = [23, 0, 7, 40], [4, 4, 6, 8]


def bucket_of(sample):
    return next(k for k, end in enumerate(itertools.accumulate(COUNTS)) if sample < end)


def test_a_batch_is_of_one_bucket_and_an_epoch_has_every_sample_once():
    batches = take(600, COUNTS, SIZES, seed=1)
    for batch in batches:
        (bucket,) = {bucket_of(visit.sample) for visit in batch}
        assert len(batch) == SIZES[bucket]
    visits = [(visit.epoch, visit.sample) for batch in batches for visit in batch]
    assert len(set(visits)) == len(visits)
    whole = [sample for epoch, sample in visits if epoch == 3]
    assert sorted(whole) == list(range(sum(COUNTS)))
    ends = [max(i for i, batch in enumerate(batches) if batch[0].epoch == epoch) for epoch in (1, 5, 9)]
    assert ends == sorted(ends)


@pytest.mark.parametrize("start", [0, 1, 11, 12, 13, 57, 500])
def test_the_order_has_no_state(start):
    assert take(20, COUNTS, SIZES, seed=2, start=start) == take(start + 20, COUNTS, SIZES, seed=2)[start:]
    assert take(20, COUNTS, SIZES, seed=2, start=start) != take(20, COUNTS, SIZES, seed=3, start=start)


@pytest.mark.parametrize("world", [1, 2])
def test_all_ranks_have_the_same_bucket_and_share_its_batch(world):
    whole = take(50, COUNTS, SIZES, seed=4)
    ranks = [take(50, COUNTS, SIZES, seed=4, rank=rank, world=world) for rank in range(world)]
    for step, batch in enumerate(whole):
        parts = [rank[step] for rank in ranks]
        assert sorted(itertools.chain(*parts)) == sorted(batch)
        assert len({bucket_of(part[0].sample) for part in parts}) == 1


@pytest.mark.parametrize("world", [1, 2])
def test_a_step_with_accumulated_gradients_has_the_samples_of_one_without(world):
    """In parts of equal size, each of the step's bucket; row i of a part of a rank is row part size + i world + rank."""
    counts, sizes = [23, 0, 7, 40], [4, 4, 8, 8]
    for start in (0, 3):
        whole = take(40, counts, sizes, seed=4, start=start)
        ranks = [take(80, counts, sizes, seed=4, start=start, rank=r, world=world, parts=2) for r in range(world)]
        for step, batch in enumerate(whole):
            half = len(batch) // 2
            for part in range(2):
                shares = [rank[2 * step + part] for rank in ranks]
                assert [visit for rows in zip(*shares, strict=True) for visit in rows] == batch[part * half :][:half]


def test_a_batch_that_the_ranks_cannot_share_is_refused():
    with pytest.raises(ValueError, match=r"6 pictures is not a multiple of the number of processes \(4\)"):
        BucketBatches(COUNTS, SIZES, seed=0, world=4)
    with pytest.raises(ValueError, match=r"6 pictures is not a multiple .* accumulate_grad_batches \(4\)"):
        BucketBatches(COUNTS, SIZES, seed=0, parts=4)


def test_a_billion_samples_start_at_once():
    """The epoch of a step is found by arithmetic; no list of batches before it is made."""
    batches = BucketBatches([10**9, 5 * 10**8], [256, 256], seed=0)
    assert batches.epoch_of(6 * 10**6) == 1
    assert batches.batches_until(1) == [10**9 // 256, 5 * 10**8 // 256]
