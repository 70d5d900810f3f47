"""Low-rank adapters on every backbone: they begin as nothing, train alone, and merge into the weights."""

import pytest
import torch

from dit.adapters.lora import PARTS, LoRA, target_layers
from dit.adapters.low_rank import adapted_layers

from ..backbones.test_backbones import JOINT, OWN, TEXT, inputs, woken

VARIANTS = {"lora": {}, "dora": {"dora": True}, "rslora": {"rank_stabilized": True}}
ALL = ("attention", "mlp", "modulation")


def trained(net, seed=1):
    """Gives every weight of the adapter a random value, as training does."""
    draw = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        if p.requires_grad:
            p.data += 0.1 * torch.randn(p.shape, generator=draw)
    return net


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("make", OWN.values(), ids=OWN)
def test_an_adapter_begins_as_nothing_trains_alone_and_merges(make, variant):
    net = woken(make).eval()
    before, keys = net(*inputs()), net.state_dict().keys()
    targets = [name for name in ALL if any(name in layer for layer in dict(net.named_modules()))]
    adapter = LoRA(4, 8, targets, **variant)
    assert adapter(net) is net
    rounding = 1e-5 if "dora" in variant else 0
    torch.testing.assert_close(net(*inputs()), before, atol=rounding, rtol=rounding)
    learned = {name for name, p in net.named_parameters() if p.requires_grad}
    assert learned == {name for name, _ in net.named_parameters() if "lora_" in name}
    trained(net)(*inputs()).square().mean().backward()
    reached = {name.split(".lora_")[0] for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {name for name, _ in adapted_layers(net)}
    changed = net(*inputs())
    assert not torch.allclose(changed, before, atol=1e-3)
    merged = adapter.merge(net)
    assert merged.state_dict().keys() == keys
    torch.testing.assert_close(merged(*inputs()), changed, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("variant", "scale"), [({}, 4.0), ({"rank_stabilized": True}, 8.0)])
def test_the_update_is_the_product_of_both_matrices_times_its_scale(variant, scale):
    net = woken(TEXT)
    weight = net.blocks[0].mlp.up.weight.detach().clone()
    trained(LoRA(4, 16, ["mlp"], **variant)(net))
    layer = net.blocks[0].mlp.up
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert (a.shape, b.shape) == ((4, 48), (192, 4))
    expected = weight + scale * b @ a
    LoRA().merge(net)
    torch.testing.assert_close(net.blocks[0].mlp.up.weight, expected)


@pytest.mark.parametrize("other", [{"rank": 8}, {"targets": ["attention"]}, {"dora": True}, {"rank_stabilized": True}])
def test_a_second_adapter_is_refused_and_the_same_one_stays(other):
    settings = {"rank": 4, "alpha": 16, "targets": ["mlp"]}
    net = trained(LoRA(**settings)(woken(TEXT)))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert LoRA(**settings)(net) is net
    with pytest.raises(ValueError, match=r"the network has another low-rank adapter than adapter.rank="):
        LoRA(**(settings | other))(net)
    assert before.keys() == net.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_parts_are_found_by_our_names_and_by_patterns():
    net = JOINT()
    found = {part: target_layers(net, [part]) for part in PARTS}
    assert found["attention"][:3] == [
        f"blocks.0.{s}" for s in ("image.attention.qkv", "image.attention.out", "text.attention.qkv")
    ]
    assert {name.rpartition(".")[2] for name in found["mlp"]} == {"up", "down"}
    assert "head.modulation.linear" in found["modulation"]
    assert {"text_in", "pooled.0", "pooled.2", "blocks.1.last_text.attention.qkv"} <= set(found["text"])
    assert target_layers(net, ["blocks.0.image.*", "head.linear"])[-1] == "head.linear"
    assert target_layers(net, ["attention", "mlp"]) == target_layers(net, ["mlp", "attention", "blocks.0.text.mlp.*"])
    text = target_layers(TEXT(), ["text"])
    assert {"text_in", "pooled.up", "text_blocks.0.mlp.up", "blocks.0.attention.context_kv"} <= set(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "adapter.rank=0 must be at least 1"),
        ({"alpha": 0}, "adapter.alpha=0 must be positive"),
        ({"targets": []}, "adapter.targets is empty: name one of attention, mlp, modulation, text"),
        (
            {"targets": ["attn"]},
            r"adapter.targets=attn matches none of the \d+ linear layers of TextDiT, such as time.up; ",
        ),
        (
            {"targets": ["modulation"], "dora": True},
            "and blocks.0.modulation.linear has rows of zeros, as in a network",
        ),
        ({"targets": ["mlp", "blocks.9.*"]}, r"adapter.targets=blocks.9.\* matches none"),
    ],
)
def test_what_cannot_be_an_adapter_is_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        LoRA(**options)(TEXT())
    assert "\n" not in str(error.value)
