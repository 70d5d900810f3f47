"""The number of pictures that are sampled at once on a device."""

from __future__ import annotations

from collections.abc import Callable

import torch

MOST = 256  # a larger batch is no faster
MOST_ON_CPU, PIXELS_ON_CPU = 64, 2**20  # of a batch; a decoder needs about a kilobyte of memory for a pixel
SHARE = 0.8  # of the memory of a GPU that may be used


def fitting_batch(device: torch.device, pixels: int, sample: Callable[[int], object], most: int = MOST) -> int:
    """Returns the number of pictures that fit a device, a power of two and at most `most`: on a GPU by the memory that
    one and two pictures need, elsewhere by their pixels. It is the same on every device of one kind. pixels: width x
    height; sample: makes this number of pictures."""
    if device.type != "cuda":
        return largest_power(min(MOST_ON_CPU, PIXELS_ON_CPU // pixels, most))
    peaks = []
    for count in (1, 2):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        sample(count)
        peaks.append(torch.cuda.max_memory_allocated(device))
    each = max(peaks[1] - peaks[0], 1)
    free = SHARE * torch.cuda.get_device_properties(device).total_memory - peaks[0]
    return largest_power(min(MOST, int(free // each) + 1, most))


def largest_power(number: int) -> int:
    """Returns the largest power of two that is at most a number, at least 1."""
    return 1 << max(number, 1).bit_length() - 1
