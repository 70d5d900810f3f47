import pytest
import torch

from dit.adapters.extra import ExtraConditions
from dit.adapters.freeze import Freeze
from dit.backbones.dit import DiT
from dit.types import Condition


def network():
    torch.manual_seed(0)
    net = DiT(channels=2, classes=3, width=16, depth=2, heads=2)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return net


def inputs(**extra):
    generator = torch.Generator().manual_seed(1)
    x, time = torch.randn(4, 2, 4, 4, generator=generator), torch.rand(4, generator=generator) * 1000
    return x, time, Condition(label=torch.arange(4), extra=extra)


def test_freeze_leaves_the_named_weights_to_training():
    net = Freeze(["*.attention.*", "head.*"])(network())
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in net.named_parameters() if ".attention." in n or n.startswith("head.")}
    assert Freeze(["*"]).merge(net) is net


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match=r"adapter.trainable=\*.lora.\* matches none of the \d+ weights of DiT"):
        Freeze(["*.lora.*"])(network())


def test_extra_conditions_begin_as_nothing_and_are_learnt():
    plain = network()
    expected = plain(*inputs())
    adapted = ExtraConditions(["second_time", "scale"])(network())
    args = inputs(second_time=torch.rand(4) * 1000, scale=torch.full((4,), 3.0))
    torch.testing.assert_close(adapted(*args), expected, atol=0, rtol=0)
    adapted(*args).square().sum().backward()
    assert adapted.time.extra["scale"].down.weight.grad.abs().max() > 0
    torch.nn.init.normal_(adapted.time.extra["scale"].down.weight)
    assert not torch.allclose(adapted(*args), expected)


def test_a_part_that_the_network_reads_must_be_there():
    with pytest.raises(ValueError, match=r"the network reads 'second_time' of Condition\.extra"):
        ExtraConditions(["second_time"])(network())(*inputs())


def test_a_slower_clock_keeps_the_output_and_divides_its_derivative():
    """Of an embedding of slow sinusoids and some noise of fast ones, as a trained one is."""
    net, times = network(), torch.linspace(0, 1000, 2001)
    number = torch.arange(256) % 128  # the first have periods of 6 to 100, the last of more than 400
    net.time.up.weight.data *= torch.where(number < 40, 0.04, torch.where(number < 60, 0.0, 1.0))

    def vectors():
        return net.time(times)

    def speed(found):
        return float((found[1:] - found[:-1]).norm())

    before, output = vectors().detach(), net(*inputs()).detach()
    adapted = ExtraConditions(["duration"], {"duration": 0.0}, clock=16)(net)
    after = vectors().detach()
    change = float((after - before).norm() / (before - before.mean(0)).norm())
    assert 0 < change < 0.1
    assert change == pytest.approx(net.time.fit_error, rel=0.01)
    assert float((adapted(*inputs()).detach() - output).norm() / output.norm()) < 0.1
    assert speed(after) < 0.5 * speed(before)
    again = ExtraConditions(["duration"], {"duration": 0.0}, clock=16)(net)
    assert torch.equal(again.time(times), after)


@pytest.mark.parametrize("clock", [0, -1, 1000, float("nan")])
def test_a_clock_that_is_not_slower_is_refused(clock):
    with pytest.raises(ValueError, match=r"adapter.clock=\S+ must be between 0 and 1000"):
        ExtraConditions(["duration"], clock=clock)
