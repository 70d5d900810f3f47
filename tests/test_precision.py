"""Which precision a device gets, and where it applies."""

import pytest
import torch

from dit.precision import check_precision, float32_products, network_autocast, precision_on

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_auto_is_bf16_on_gpus_that_have_it_and_32_elsewhere(monkeypatch):
    for has in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert precision_on(CUDA, "auto") == ("bf16" if has else "32")
        assert precision_on(CPU, "auto") == precision_on(torch.device("mps"), "auto") == "32"
    assert precision_on(CPU, "bf16") == "bf16"


def test_tf32_is_refused_where_it_would_be_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    for device in (CPU, CUDA):
        with pytest.raises(ValueError, match="precision=tf32"):
            precision_on(device, "tf32")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert precision_on(CUDA, "tf32") == "tf32"


def test_a_precision_is_named_by_a_word_or_by_32():
    assert check_precision(32) == check_precision("32") == "32"
    with pytest.raises(ValueError, match="precision=16: choose one of auto, 32, tf32, bf16"):
        check_precision(16)


@pytest.mark.parametrize(("precision", "allowed"), [("32", False), ("tf32", True), ("bf16", True)])
def test_float32_products_are_in_tf32_as_asked_and_afterwards_as_before(precision, allowed):
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    with float32_products(CUDA, precision):
        assert (matmul.allow_tf32, cudnn.allow_tf32) == (allowed, allowed)
    assert (matmul.allow_tf32, cudnn.allow_tf32) == before


def test_a_surrounding_autocast_ends_at_the_network():
    x = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with network_autocast(CPU, "32"):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16
    with network_autocast(CPU, "bf16"):
        assert (x @ x).dtype == torch.bfloat16
