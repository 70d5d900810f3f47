"""One row for each backbone; a new one adds its row here and gets every law tested."""

import pytest
import torch

from dit.backbones.dit import DiT
from dit.types import Condition

BACKBONES = {
    "dit": lambda **kw: DiT(channels=4, token_dim=12, pooled_dim=10, patch=2, width=48, depth=2, heads=4, **kw),
    "dit_patch_1": lambda **kw: DiT(channels=4, token_dim=12, pooled_dim=10, patch=1, width=32, depth=1, heads=2, **kw),
}


def inputs(batch=3, side=8, length=6):
    draw = torch.Generator().manual_seed(0)
    mask = torch.arange(length) < torch.tensor([[length], [2], [4]])[:batch]
    condition = Condition(
        tokens=torch.randn(batch, length, 12, generator=draw), mask=mask,
        pooled=torch.randn(batch, 10, generator=draw),
    )  # fmt: skip
    return (
        torch.randn(batch, 4, side, side, generator=draw),
        torch.tensor([10.0, 500.0, 990.0])[:batch],
        condition,
    )


def woken(make, seed=0):
    """A backbone whose zero-initialised parts have left zero."""
    torch.manual_seed(seed)
    net = make()
    for p in net.parameters():
        if p.abs().max() == 0:
            torch.nn.init.normal_(p, std=0.1)
    return net


@pytest.mark.parametrize("make", BACKBONES.values(), ids=BACKBONES)
class TestBackbone:
    def test_starts_at_zero(self, make):
        assert make()(*inputs()).abs().max() == 0

    @pytest.mark.parametrize("side", [4, 8, 12])
    def test_shapes_at_any_resolution(self, make, side):
        x, time, condition = inputs(side=side)
        assert woken(make)(x, time, condition).shape == x.shape

    def test_every_parameter_has_a_gradient(self, make):
        net = woken(make)
        net(*inputs()).square().sum().backward()
        without = [n for n, p in net.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
        assert not without

    def test_padding_changes_nothing(self, make):
        net, (x, time, condition) = woken(make), inputs()
        junk = torch.where(condition.mask[..., None], condition.tokens, torch.full_like(condition.tokens, 7.0))
        changed = Condition(tokens=junk, mask=condition.mask, pooled=condition.pooled)
        torch.testing.assert_close(net(x, time, changed), net(x, time, condition), atol=1e-6, rtol=0)

    def test_tokens_pooled_and_time_are_heard(self, make):
        net, (x, time, condition) = woken(make), inputs()
        plain = net(x, time, condition)
        for change in (
            (x, time + 100, condition),
            (x, time, Condition(condition.tokens * 2, condition.mask, condition.pooled)),
            (x, time, Condition(condition.tokens, condition.mask, condition.pooled * 2)),
        ):
            assert (net(*change) - plain).abs().amax(dim=(1, 2, 3)).min() > 1e-4

    def test_samples_do_not_see_each_other(self, make):
        net, (x, time, condition) = woken(make), inputs()
        together, order = net(x, time, condition), torch.tensor([2, 0, 1])
        torch.testing.assert_close(net(x[order], time[order], condition[order]), together[order], atol=1e-5, rtol=0)
        for row in range(3):
            one = torch.tensor([row])
            torch.testing.assert_close(net(x[one], time[one], condition[one])[0], together[row], atol=1e-5, rtol=0)

    def test_places_are_told_apart(self, make):
        net, (x, time, condition) = woken(make), inputs()
        turned = net(x.flip(-1), time, condition).flip(-1)
        assert (turned - net(x, time, condition)).abs().max() > 1e-4

    def test_bf16_is_near_float32(self, make):
        net, args = woken(make), inputs()
        with torch.autocast("cpu", torch.bfloat16):
            low = net(*args)
        full = net(*args)
        assert (low.float() - full).abs().max() < 0.1 * full.abs().max()

    def test_wrong_channels_are_refused(self, make):
        x, time, condition = inputs()
        with pytest.raises(ValueError, match="channels"):
            make()(x[:, :3], time, condition)


def test_width_must_be_a_multiple_of_heads():
    with pytest.raises(ValueError, match="heads=5"):
        DiT(channels=4, token_dim=8, pooled_dim=8, width=48, heads=5)
