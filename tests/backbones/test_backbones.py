"""One row for each backbone. A new one in conf/backbone gets every law tested without a row; a row is a further variant."""

import copy
import inspect
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
from hydra.utils import instantiate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from dit.backbones.ddt import DDT
from dit.backbones.dit import DiT
from dit.backbones.flux import Flux
from dit.backbones.flux2 import Flux2
from dit.backbones.in_context import InContextDiT
from dit.backbones.mmdit import MMDiT
from dit.backbones.pixart import PixArt
from dit.backbones.text_dit import TextDiT
from dit.layers.embeddings import TimeEmbedding
from dit.layers.mlp import SwiGLU
from dit.layers.norm import rms_norm
from dit.types import Condition

from ..conftest import composed
from ..parts import found, full_name, target
from ..waiting import Waiting, no_waiting_on_cuda

SMALL = {"channels": 4, "width": 48, "depth": 2, "heads": 4}
MODERN = {
    "qk_norm": True,
    "position": "rotary",
    "registers": 2,
    "overlap": 1,
    "norm": rms_norm,
    "mlp": SwiGLU,
    "base": 4,
}
TEXT = partial(TextDiT, token_dim=12, pooled_dim=10, **SMALL)
JOINT = partial(MMDiT, token_dim=12, pooled_dim=10, **SMALL)
FLUX = partial(Flux, token_dim=12, pooled_dim=10, **SMALL | {"depth": 1})
FLUX2 = partial(Flux2, token_dim=12, single_depth=1, **SMALL | {"depth": 1, "heads": 2})
PIXART = partial(PixArt, token_dim=12, **SMALL)
BACKBONES = {
    "text_dit": TEXT,
    "text_dit_patch_1": partial(TEXT, patch=1),
    "text_dit_overlap": partial(TEXT, overlap=1, outputs=2),
    "text_dit_modern": partial(TEXT, **MODERN),
    "pixart": PIXART,
    "pixart_micro": partial(PixArt, token_dim=12, outputs=2, pixels_per_cell=8, **SMALL),
    "pixart_modern": partial(PixArt, token_dim=12, **SMALL, **MODERN),
    "mmdit": JOINT,
    "mmdit_sd35": partial(JOINT, dual=1, qk_norm=True, position="cropped", base=4, largest=8),
    "mmdit_modern": partial(JOINT, dual=2, **MODERN),
    "flux": FLUX,
    "flux_guided": partial(FLUX, single_depth=1, axes=(2, 6, 4), guidance_scale=3.5),
    "flux2": FLUX2,
    "flux2_guided": partial(FLUX2, axes=(2, 8, 8, 6), guidance_scale=3.5, patch=2),
    "dit": partial(DiT, classes=5, **SMALL),
    "dit_modern": partial(DiT, classes=5, **SMALL, **MODERN),
    "ddt": partial(DDT, classes=5, encoder_depth=1, **SMALL),
    "ddt_modern": partial(DDT, classes=5, encoder_depth=1, **SMALL, **MODERN),
    "in_context": partial(InContextDiT, classes=5, token_dim=12, pooled_dim=10, registers=1, **SMALL),
    "in_context_labels": partial(InContextDiT, classes=5, **SMALL),
    "in_context_modern": partial(InContextDiT, classes=5, token_dim=12, pooled_dim=10, **SMALL, **MODERN),
    "dit_learned_range": partial(DiT, classes=5, outputs=2, **SMALL),
}


def small(node):
    """A backbone of a yaml at the sizes of the rows above."""
    sizes = SMALL | {"token_dim": 12, "pooled_dim": 10, "classes": 5}
    taken = inspect.signature(target(node)).parameters
    return partial(instantiate(node, _partial_=True), **{name: size for name, size in sizes.items() if name in taken})


BACKBONES |= {name: small(node) for name, node in found("backbone", set(map(full_name, BACKBONES.values()))).items()}
OWN = {name: make for name, make in BACKBONES.items() if full_name(make).startswith("dit.")}  # with names of our layers


def inputs(batch=3, side=8, length=6):
    """Every kind of condition: a backbone takes what it reads."""
    draw = torch.Generator().manual_seed(0)
    mask = torch.arange(length) < torch.tensor([[length], [2], [4]])[:batch]
    condition = Condition(
        tokens=torch.randn(batch, length, 12, generator=draw), mask=mask,
        pooled=torch.randn(batch, 10, generator=draw), label=torch.tensor([0, 3, 5])[:batch],
    )  # fmt: skip
    return (
        torch.randn(batch, 4, side, side, generator=draw),
        torch.tensor([10.0, 500.0, 990.0])[:batch],
        condition,
    )


def keywords(make):
    return make.keywords | (keywords(make.func) if isinstance(make.func, partial) else {})


def woken(make, seed=0):
    """A backbone whose zero-initialised parts have left zero."""
    torch.manual_seed(seed)
    net = make()
    for p in net.parameters():
        if p.abs().max() == 0:
            torch.nn.init.normal_(p, std=0.1)
    return net


def answer_and_gradient(net, x, time, condition):
    """What a network, compiled or not, answers, and the gradient of a loss of that by the parameters' names."""
    net.zero_grad()
    answer = net(x, time, condition)
    answer.square().mean().backward()
    named = getattr(net, "_orig_mod", net).named_parameters()
    return answer.detach(), {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.mark.parametrize("make", BACKBONES.values(), ids=BACKBONES)
class TestBackbone:
    def test_starts_at_zero(self, make):
        assert make()(*inputs()).abs().max() == 0

    @pytest.mark.parametrize("sides", [(4, 4), (8, 8), (12, 4)])
    def test_shapes_at_any_resolution(self, make, sides):
        x, time, condition = inputs()
        x = torch.randn(3, 4, *sides)
        made = woken(make)(x, time, condition)
        assert made.shape == (3, 4 * make.keywords.get("outputs", 1), *sides)

    def test_every_parameter_has_a_gradient(self, make):
        net = woken(make)
        net(*inputs()).square().sum().backward()
        trained = [(n, p) for n, p in net.named_parameters() if p.requires_grad]
        without = [n for n, p in trained if p.grad is None or p.grad.abs().max() == 0]
        assert not without

    def test_time_and_every_part_of_the_condition_that_it_reads_are_heard(self, make):
        net, (x, time, condition) = woken(make), inputs()
        plain = net(x, time, condition)
        changes = {
            "tokens": replace(condition, tokens=condition.tokens * 2),
            "pooled": replace(condition, pooled=condition.pooled * 2),
            "label": replace(condition, label=(condition.label + 1) % 6),
        }
        read = {"classes": ["label"], "token_dim": ["tokens"], "pooled_dim": ["pooled"]}
        heard = [part for size, parts in read.items() if size in keywords(make) for part in parts]
        assert heard
        for other in ((x, time + 100, condition), *((x, time, changes[part]) for part in heard)):
            assert (net(*other) - plain).abs().amax(dim=(1, 2, 3)).min() > 1e-4

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

    def test_bf16_weights_are_near_float32(self, make):
        net, (x, time, condition) = woken(make), inputs()
        full = net(x, time, condition)
        texts = replace(condition, tokens=condition.tokens.bfloat16(), pooled=condition.pooled.bfloat16())
        low = net.bfloat16()(x.bfloat16(), time, texts)
        assert low.dtype == torch.bfloat16
        assert (low.float() - full).abs().max() < 0.1 * full.abs().max()

    def test_wrong_channels_are_refused(self, make):
        x, time, condition = inputs()
        with pytest.raises(ValueError, match="channels"):
            make()(x[:, :3], time, condition)

    def test_a_condition_without_what_it_reads_is_refused(self, make):
        x, time, _ = inputs()
        with pytest.raises(ValueError, match="needs"):
            make()(x, time, Condition())


@pytest.mark.parametrize("make", [  # each takes seconds
    pytest.param(make, id=name, marks=[] if name in ("dit", "text_dit") else [pytest.mark.slow])
    for name, make in BACKBONES.items()
])  # fmt: skip
def test_compiling_changes_nothing(make):
    net, args = woken(make), inputs()
    plain, gradient = answer_and_gradient(net, *args)
    compiled, other = answer_and_gradient(torch.compile(net, backend="aot_eager", fullgraph=True), *args)
    torch.testing.assert_close(compiled, plain, atol=1e-5, rtol=0)
    for name, g in gradient.items():
        assert (other[name] - g).abs().max() <= 1e-5 * max(1, g.abs().max()), name


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["dit_modern", "text_dit"])
def test_compiling_on_a_gpu_changes_nothing(name):
    net, args = woken(BACKBONES[name]).cuda(), [part.to("cuda") for part in inputs()]
    plain, gradient = answer_and_gradient(net, *args)
    compiled, other = answer_and_gradient(torch.compile(net, fullgraph=True), *args)
    # convolutions are in TF32 unless that is switched off
    assert (compiled - plain).abs().max() <= 1e-2 * plain.abs().max()
    for key, g in gradient.items():
        assert (other[key] - g).abs().max() <= 1e-2 * max(1, g.abs().max()), key


@pytest.mark.gpu
@pytest.mark.parametrize("make", BACKBONES.values(), ids=BACKBONES)
def test_a_forward_on_a_gpu_agrees_with_the_cpu_and_never_waits(make):
    net, args = woken(make), inputs()
    expected = net(*args).detach()
    net, args = net.cuda(), [part.to("cuda") for part in args]
    net(*args)  # tables of places are made here
    with torch.no_grad(), no_waiting_on_cuda():
        made = net(*args)
    assert (made.cpu() - expected).abs().max() <= 1e-2 * expected.abs().max()  # convolutions are in TF32
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        net(*args)
        with no_waiting_on_cuda():
            low = net(*args)
    assert (low.float().cpu() - expected).abs().max() < 0.1 * expected.abs().max()


READERS = {name: make for name, make in BACKBONES.items() if "token_dim" in keywords(make)}
ATTENDING = {name: make for name, make in READERS.items() if "heads" in keywords(make)}


@pytest.mark.parametrize("make", READERS.values(), ids=READERS)
def test_padding_changes_nothing(make):
    net, (x, time, condition) = woken(make), inputs()
    real = condition.mask[..., None]
    tokens = torch.where(real, condition.tokens, torch.full_like(condition.tokens, 7.0)).requires_grad_()
    plain, gradient = answer_and_gradient(net, x, time, condition)
    changed, other = answer_and_gradient(net, x, time, replace(condition, tokens=tokens))
    torch.testing.assert_close(changed, plain, atol=1e-6, rtol=0)
    assert not tokens.grad[~condition.mask].any()
    assert tokens.grad[condition.mask].any()
    for name, g in gradient.items():
        assert (other[name] - g).abs().max() <= 1e-6 * max(1, g.abs().max()), name


@pytest.mark.parametrize("make", READERS.values(), ids=READERS)
@pytest.mark.parametrize("rows", [[0, 1, 2], [1, 2], [0]], ids=str)
def test_trimming_the_padding_off_changes_nothing(make, rows):
    """Without a mask too, where nothing is hidden: no mask means that every token is real."""
    net, (x, time, condition) = woken(make), (part[torch.tensor(rows)] for part in inputs())
    whole, gradient = answer_and_gradient(net, x, time, condition)
    made, other = answer_and_gradient(net, x, time, condition.trim())
    assert (condition.trim().mask is None) == (len(rows) == 1)
    assert condition.trim().tokens.shape[1] == (4 if rows == [1, 2] else 6)
    torch.testing.assert_close(made, whole, atol=2e-6, rtol=0)
    for name, g in gradient.items():
        assert (other[name] - g).abs().max() <= 2e-6 * max(1, g.abs().max()), name


@pytest.mark.parametrize("make", ATTENDING.values(), ids=ATTENDING)
def test_a_mask_is_converted_once_and_costs_nothing_where_there_is_none(make, monkeypatch):
    given, plain = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *qkv, attn_mask=None: given.append(attn_mask) or plain(*qkv, attn_mask=attn_mask),
    )
    net, (x, time, condition) = woken(make), inputs()
    net(x, time, condition)
    biases = [bias for bias in given if bias is not None]
    assert biases
    assert all(bias.dtype == x.dtype for bias in biases)
    assert len({bias.data_ptr() for bias in biases}) == len({bias.shape for bias in biases}) <= 2
    given.clear()
    net(x[:1], time[:1], condition[:1].trim())
    assert given
    assert all(bias is None for bias in given)


def test_nothing_is_sent_at_every_step():
    """DDP sends every buffer to all processes at each forward; SD3's table of places alone has 200 MB."""
    assert not [name for make in BACKBONES.values() for name, _ in make().named_buffers()]
    assert not BACKBONES["mmdit_sd35"]().patches.table.requires_grad


@pytest.mark.parametrize("name", ["flux_guided", "flux2_guided"])
def test_the_guidance_scale_is_read_from_the_condition_and_has_a_default(name):
    net, (x, time, condition) = woken(BACKBONES[name]), inputs()
    plain = net(x, time, condition)
    given = [
        net(x, time, replace(condition, extra={"guidance_scale": torch.full((3,), scale)})) for scale in (3.5, 1.0)
    ]
    assert torch.equal(given[0], plain)
    assert (given[1] - plain).abs().amax(dim=(1, 2, 3)).min() > 1e-4


def test_width_must_be_a_multiple_of_heads():
    with pytest.raises(ValueError, match="heads=5"):
        DiT(channels=4, classes=2, width=48, heads=5)


@pytest.mark.parametrize(("make", "fault"), [
    (lambda: DiT(4, 2, width=48, depth=1, heads=4, position="learned"), "position='learned'"),
    (lambda: DiT(4, 2, width=24, depth=1, heads=4, position="rotary")(*inputs()), "width of a head is 6"),
    (lambda: JOINT(dual=3), "dual=3"),
    *((partial(make, position="cropped"), "cropped needs largest, .* such as largest=192") for name, make in BACKBONES.items() if "modern" in name),
    (lambda: JOINT(largest=8), "largest=8 .* set position=cropped"),
    (lambda: PIXART(base=None), "base=null"),
    (lambda: TEXT(base=0), "base=0 must be positive"),
    (lambda: TEXT(registers=-1), "registers=-1"),
    (lambda: JOINT(position="cropped", largest=3)(*inputs()), "4 x 4 patches"),
    (lambda: FLUX(axes=(4, 4, 2)), r"axes=\[4, 4, 2\] must be 3 even numbers that add up to .* = 12"),
    (lambda: FLUX(axes=(6, 3, 3)), r"axes=\[6, 3, 3\] must be 3 even numbers"),
    (lambda: FLUX2(axes=(6, 6, 6)), r"axes=\[6, 6, 6\] must be 4 even numbers that add up to .* = 24"),
    (lambda: FLUX(axes=(6, 6)), r"axes=\[6, 6\] must be 3 even numbers"),
])  # fmt: skip
def test_bad_options_are_refused(make, fault):
    with pytest.raises(ValueError, match=fault):
        make()


PUBLISHED = {  # millions of parameters and GFLOPs (multiplications) at 256 x 256, table 4 of the paper
    "s_8": (33, 0.36), "s_4": (33, 1.41), "s_2": (33, 6.06), "b_8": (131, 1.42), "b_4": (130, 5.56), "b_2": (130, 23.01),
    "l_8": (459, 5.01), "l_4": (458, 19.70), "l_2": (458, 80.71), "xl_8": (676, 7.39), "xl_4": (675, 29.05), "xl_2": (675, 118.64),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_sizes_of_dit_are_the_published_ones(name):
    from hydra.utils import instantiate

    with torch.device("meta"):
        net = instantiate(composed("train", [f"backbone=dit_{name}"]).backbone, channels=4, classes=1000, outputs=2)
        x, time = torch.empty(1, 4, 32, 32), torch.empty(1)
        with FlopCounterMode(display=False) as counter:
            net(x, time, Condition(label=torch.zeros(1, dtype=torch.long)))
    millions, gflops = PUBLISHED[name]
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.9)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gflops, rel=0.02)


def on_meta(make):
    """A backbone and its inputs on a device without values."""
    x, time, condition = (part.to("meta") for part in inputs())
    return make().to("meta"), x, time, condition


@pytest.mark.parametrize("make", BACKBONES.values(), ids=BACKBONES)
def test_a_forward_never_waits_for_the_device(make):
    net, *args = on_meta(make)
    with Waiting() as waiting:
        net(*args)
    assert not waiting.found


@pytest.mark.parametrize("make", BACKBONES.values(), ids=BACKBONES)
def test_tables_of_places_and_frequencies_are_made_once(make):
    """They depend on sizes alone: the second forward computes no sine."""
    net, *args = on_meta(make)
    net(*args)
    with Names() as names:
        net(*args)
    assert not {"arange", "exp", "meshgrid"} & names.seen
    assert names.seen  # the counter saw the forward
    assert (names.count["sin"], names.count["cos"]) == (waves(net), waves(net))


def waves(net):
    """A sine and a cosine for each embedding of a number that is known in the forward alone."""
    return sum(isinstance(module, TimeEmbedding) for module in net.modules())


class Names(TorchDispatchMode):
    """Which operations are called, and how often."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    @property
    def seen(self):
        return set(self.count)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["text_dit_modern", "pixart", "mmdit_sd35"])
def test_a_network_that_has_sampled_is_trained_copied_and_saved_as_before(name, tmp_path):
    """What it keeps of a forward is no part of it."""
    net, args = woken(BACKBONES[name]), inputs()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with torch.inference_mode():
        sampled = net(*args)
    trained, gradient = answer_and_gradient(net, *args)
    assert torch.equal(sampled, trained)
    assert all(g.isfinite().all() for g in gradient.values())
    assert net.state_dict().keys() == before.keys()
    torch.save(net, tmp_path / "whole.pt")
    for other in (copy.deepcopy(net), torch.load(tmp_path / "whole.pt", weights_only=False)):
        assert torch.equal(other(*args), sampled)
    low = net.bfloat16()(args[0].bfloat16(), *args[1:])  # another type has tables of its own
    assert low.dtype == torch.bfloat16
