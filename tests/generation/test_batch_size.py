"""The number of pictures that fit a device."""

import types

import pytest
import torch

from dit.generation.batch_size import fitting_batch, largest_power

GIB = 2**30


@pytest.mark.parametrize(("number", "power"), [(0, 1), (1, 1), (2, 2), (3, 2), (64, 64), (255, 128), (256, 256)])
def test_the_largest_power_of_two(number, power):
    assert largest_power(number) == power


@pytest.mark.parametrize(("side", "most", "batch"), [(8, 256, 64), (32, 256, 64), (32, 20, 16), (256, 256, 16), (1024, 256, 1), (4096, 256, 1)])  # fmt: skip
def test_on_a_cpu_it_follows_from_the_pixels(side, most, batch):
    def refuse(count):
        raise AssertionError("nothing is sampled")

    assert fitting_batch(torch.device("cpu"), side * side, refuse, most) == batch


@pytest.mark.parametrize(
    ("fixed", "each", "batch"), [(10, 1, 32), (10, 0.001, 256), (10, 30, 1), (39, 30, 1), (10, 14, 2)]
)
def test_on_a_gpu_it_follows_from_the_memory_of_one_and_two_pictures(monkeypatch, fixed, each, batch):
    """A GPU of 60 GiB, of which 48 may be used, and a network of `fixed` GiB that needs `each` for a picture."""
    used = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: used.clear())
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: int((fixed + each * used[-1]) * GIB))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(total_memory=60 * GIB)
    )
    found = fitting_batch(torch.device("cuda"), 1, used.append)
    assert found == batch
    assert fixed + each * found <= 48 or found == 1
    assert fixed + each * 2 * found > 48 or found == 256
