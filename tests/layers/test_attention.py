"""Attention against its formula in float64, whichever kernel it takes."""

from contextlib import nullcontext

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from dit.layers import attention
from dit.layers.attention import MAX_SCORES, Attention, attend, key_bias

SIDES = {
    "short": (MAX_SCORES // 128, 128),
    "long": (MAX_SCORES // 128, 136),
}  # queries, keys: about the most held at once


def drawn(sides, dtype, seed=0):
    draw = torch.Generator().manual_seed(seed)
    queries, keys = SIDES[sides]
    return [torch.randn(2, 2, n, 16, generator=draw).to(dtype).requires_grad_() for n in (queries, keys, keys)]


def by_formula(q, k, v, mask=None):
    """softmax(q k^T / sqrt(d)) v in float64, and its gradients of a loss that weighs each number differently."""
    q, k, v = (part.detach().double().requires_grad_() for part in (q, k, v))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
    return loss_and_gradients((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), q, k, v)


def loss_and_gradients(y, *parts):
    weight = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).sin().view_as(y).to(y.device)
    (y.double() * weight).sum().backward()
    return [y.detach(), *(part.grad for part in parts)]


@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("sides", SIDES)
def test_attention_is_its_formula(sides, dtype, bound, masked, products, monkeypatch):
    monkeypatch.setattr(attention, "FAST_PRODUCTS", products)
    q, k, v = drawn(sides, dtype)
    mask = torch.arange(k.shape[2]) < torch.tensor([[5], [k.shape[2]]]) if masked else None
    ours = loss_and_gradients(attend(q, k, v, key_bias(mask, q)), q, k, v)
    for mine, exact in zip(ours, by_formula(q, k, v, mask), strict=True):
        assert mine.dtype == dtype
        assert (mine.double() - exact).abs().max() <= bound * exact.abs().max()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("sides", "dtype", "taken"), [
    ("short", torch.bfloat16, True), ("long", torch.bfloat16, False), ("short", torch.float32, False),
])  # fmt: skip
def test_products_are_taken_for_short_sequences_in_bf16_alone_and_where_they_are_fast(
    monkeypatch, sides, dtype, taken, masked
):
    seen, products = [], attention._attend_by_products
    monkeypatch.setattr(attention, "_attend_by_products", lambda *parts: seen.append(1) or products(*parts))
    q, k, v = drawn(sides, dtype)
    mask = torch.arange(k.shape[2]) < torch.tensor([[5], [k.shape[2]]])
    for fast in (False, True):
        seen.clear()
        monkeypatch.setattr(attention, "FAST_PRODUCTS", fast)
        attend(q, k, v, key_bias(mask, q) if masked else None)
        assert bool(seen) == (taken and fast)


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("after", [0, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bias_of_a_mask(before, after, dtype):
    mask = torch.tensor([[True, False, True, True, False], [True] * 5])
    bias = key_bias(mask, torch.zeros(1, dtype=dtype), before, after)
    shown = torch.cat([torch.ones(2, before), mask, torch.ones(2, after)], dim=1).bool()
    assert bias.dtype == dtype
    assert torch.equal(bias[:, 0, 0], torch.zeros(shown.shape, dtype=dtype).masked_fill(~shown, float("-inf")))
    assert bias.stride(0) % 8 == 0  # as CUDA's kernels want it, or they would copy it in every block
    assert bias.stride(-1) == 1
    assert key_bias(None, torch.zeros(1), before, after) is None


def test_under_autocast_the_bias_has_the_type_of_the_scores():
    with torch.autocast("cpu", torch.bfloat16):
        assert key_bias(torch.ones(1, 4, dtype=torch.bool), torch.zeros(1)).dtype == torch.bfloat16


@pytest.mark.parametrize("length", [8, 264])  # on both sides of the limit
def test_under_autocast_attention_answers_in_bf16(length):
    assert (length**2 <= MAX_SCORES) == (length == 8)
    torch.manual_seed(0)
    layer, x = Attention(32, heads=4), torch.randn(2, length, 32)
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x)
        assert attend(*(part.bfloat16() for part in layer.project(x))).dtype == torch.bfloat16
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), layer(x), atol=2e-2, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize(("backend", "masked"), [
    (None, False), (None, True), (SDPBackend.FLASH_ATTENTION, False), (SDPBackend.EFFICIENT_ATTENTION, False),
    (SDPBackend.EFFICIENT_ATTENTION, True),
], ids=str)  # fmt: skip
def test_the_kernels_of_a_gpu_are_the_formula(backend, masked):
    """333 keys, no multiple of 8, so that the bias is one only by the distance of its rows."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, n, 64, generator=draw).bfloat16() for n in (256, 333, 333))
    mask = torch.arange(77) < torch.tensor([[5], [77]])
    shown = torch.cat([torch.ones(2, 256, dtype=torch.bool), mask], dim=1)
    exact = by_formula(q, k, v, shown if masked else None)
    q, k, v = (part.cuda().requires_grad_() for part in (q, k, v))
    bias = key_bias(mask.cuda(), q, before=256) if masked else None
    with nullcontext() if backend is None else sdpa_kernel(backend):
        ours = loss_and_gradients(attend(q, k, v, bias), q, k, v)
    for mine, expected in zip(ours, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine.cpu().double() - expected).abs().max() <= 2e-2 * expected.abs().max()
