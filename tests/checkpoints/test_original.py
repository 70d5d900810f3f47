"""Files of the original code of Stable Diffusion 3, FLUX.1 and PixArt, which the tests write: read by us as by others."""

import inspect
import math

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from dit.backbones.dit import DiT
from dit.backbones.flux import Flux
from dit.backbones.mmdit import MMDiT
from dit.backbones.pixart import PixArt
from dit.checkpoints import flux, pixart, sd3
from dit.checkpoints.foreign import initialize, read_backbone
from dit.layers.embeddings import grid_sinusoid, sinusoid
from dit.types import Condition

from .test_flux import call_theirs as call_flux
from .test_sd3 import call_theirs as call_sd3

TEXT = {"token_dim": 20, "pooled_dim": 10}
OTHERS = {  # beside the transformer in a file
    "first_stage_model.decoder.conv_in.weight": torch.zeros(2, 2),
    "text_encoders.clip_l.logit_scale": torch.zeros(1),
}


def randomized(net):
    draw = torch.Generator().manual_seed(0)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1, generator=draw)
    return net.eval()


def inputs(length=7):
    draw = torch.Generator().manual_seed(1)
    text = Condition(tokens=torch.randn(2, length, 20, generator=draw), pooled=torch.randn(2, 10, generator=draw))
    return torch.randn(2, 16, 8, 4, generator=draw), torch.tensor([300.0, 990.0]), text


def written(state, file, prefix="", **others):
    """Saves a state dict and returns the file."""
    named = {prefix + name: value.contiguous() for name, value in state.items()} | others
    torch.save({"state_dict": named}, file) if file.suffix == ".pth" else save_file(named, file)
    return file


def assert_same(net, other):
    assert type(net) is type(other)
    assert net.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(other.state_dict()[k], v) for k, v in net.state_dict().items())


def sd3_net(**options):
    sizes = {"width": 128, "depth": 3, "heads": 2, "reads_padding": True, "position": "cropped", "base": 64}
    return randomized(MMDiT(16, **TEXT, **sizes, largest=6, **options))


@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "dual": 2}], ids=["sd3", "sd35"])
@pytest.mark.parametrize("others", [{}, OTHERS], ids=["alone", "with others"])
@torch.no_grad()
def test_a_file_of_stable_diffusion_3_is_read_as_diffusers_reads_it(options, others, tmp_path):
    from diffusers import SD3Transformer2DModel
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    net = sd3_net(**options)
    state = sd3.ORIGINAL.export(net, 3)
    file = written(state, tmp_path / "sd3.safetensors", "model.diffusion_model.", **others)
    assert_same(net, read_backbone(file))
    other = SD3Transformer2DModel.from_config(sd3.to_diffusers(net, 128)[0])
    other.load_state_dict(convert_sd3_transformer_checkpoint_to_diffusers(dict(state)))
    x, time, text = inputs()
    torch.testing.assert_close(net(x, time, text), call_sd3(other, x, time, text), atol=1e-5, rtol=0)
    again = sd3_net(**options)
    again.head.linear.weight.zero_()
    initialize(again, file)
    assert_same(net, again)


def flux_converter_of_diffusers(width):
    """diffusers' converter for another width than that of FLUX.1, which it contains as a number."""
    from diffusers.loaders import single_file_utils

    source = inspect.getsource(single_file_utils.convert_flux_transformer_checkpoint_to_diffusers)
    assert source.count("inner_dim = 3072") == 1
    names = dict(vars(single_file_utils))
    exec(source.replace("inner_dim = 3072", f"inner_dim = {width}"), names)
    return names["convert_flux_transformer_checkpoint_to_diffusers"]


@pytest.mark.parametrize("scale", [None, 3.5], ids=["schnell", "dev"])
@torch.no_grad()
def test_a_file_of_flux_is_read_as_diffusers_reads_it(scale, tmp_path):
    from diffusers import FluxTransformer2DModel

    net = randomized(
        Flux(16, **TEXT, width=64, depth=2, single_depth=3, heads=2, guidance_scale=scale, reads_padding=True)
    )
    state = flux.layout_of(2, 3, original=True).export(net, 1)
    for i in range(3):
        for part in ("weight", "bias"):
            layer = f"single_blocks.{i}.linear1"
            state[f"{layer}.{part}"] = torch.cat([state.pop(f"{layer}.{name}.{part}") for name in ("qkv", "mlp")])
    back = read_backbone(written(state, tmp_path / "flux.safetensors"))
    assert_same(net, back)
    save_file(back.state_dict(), tmp_path / "again.safetensors")  # no two weights share memory
    other = FluxTransformer2DModel.from_config(flux.to_diffusers(net, 8)[0])
    other.load_state_dict(flux_converter_of_diffusers(64)(dict(state)))
    x, time, text = inputs()
    torch.testing.assert_close(net(x, time, text), call_flux(other, x, time / 1000, text), atol=1e-5, rtol=0)


def linear(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def heads(x, parts):
    """(B, N, parts x 2 heads x 72) -> parts of (B, 2, N, 72)."""
    return x.unflatten(-1, (parts, 2, 72)).permute(2, 0, 3, 1, 4)


def original_pixart(state, x, time, tokens, micro):
    """The forward pass of PixArt's code (PixArt.py, PixArtMS.py, PixArt_blocks.py), for a width of 144."""

    def embedded(name, values):
        return linear(state, f"{name}.mlp.2", F.silu(linear(state, f"{name}.mlp.0", sinusoid(values, 256))))

    def norm(y):
        return F.layer_norm(y, (144,), eps=1e-6)

    t = embedded("t_embedder", time)
    if micro:
        size = torch.tensor([x.shape[2] * 8.0, x.shape[3] * 8.0]).expand(2, 2)
        ratio = embedded("ar_embedder", size[:, 0] / size[:, 1])
        t = t + torch.cat([embedded("csize_embedder", size.flatten()).view(2, -1), ratio], dim=1)
    t0 = linear(state, "t_block.1", F.silu(t)).view(2, 6, 144)
    y = F.gelu(linear(state, "y_embedder.y_proj.fc1", tokens), approximate="tanh")
    y = linear(state, "y_embedder.y_proj.fc2", y)
    h = F.conv2d(x, state["x_embedder.proj.weight"], state["x_embedder.proj.bias"], stride=2).flatten(2).mT
    h = h + state["pos_embed"]
    for i in range(2):
        block = f"blocks.{i}"
        shift, scale, gate, shift2, scale2, gate2 = (state[f"{block}.scale_shift_table"] + t0).chunk(6, dim=1)
        q, k, v = heads(linear(state, f"{block}.attn.qkv", norm(h) * (1 + scale) + shift), 3)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        h = h + gate * linear(state, f"{block}.attn.proj", attended)
        (q,), (k, v) = (
            heads(linear(state, f"{block}.cross_attn.q_linear", h), 1),
            heads(linear(state, f"{block}.cross_attn.kv_linear", y), 2),
        )
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        h = h + linear(state, f"{block}.cross_attn.proj", attended)
        inner = F.gelu(linear(state, f"{block}.mlp.fc1", norm(h) * (1 + scale2) + shift2), approximate="tanh")
        h = h + gate2 * linear(state, f"{block}.mlp.fc2", inner)
    shift, scale = (state["final_layer.scale_shift_table"] + t[:, None]).chunk(2, dim=1)
    out = linear(state, "final_layer.linear", norm(h) * (1 + scale) + shift)
    side = math.isqrt(out.shape[1])
    return out.view(2, side, side, 2, 2, 8).permute(0, 5, 1, 3, 2, 4).reshape(2, 8, 2 * side, 2 * side)


@pytest.mark.parametrize(("base", "micro"), [(4, False), (8, False), (2, False), (4, True)])
@torch.no_grad()
def test_a_file_of_pixart_computes_what_the_original_code_does(base, micro, tmp_path):
    """base: the positions that the 4 x 4 patches span. The table of the file says it."""
    sizes = {"outputs": 2, "width": 144, "depth": 2, "heads": 2, "base": base, "pixels_per_cell": 8 if micro else None}
    net = randomized(PixArt(4, 20, **sizes))
    state = pixart.ORIGINAL.export(net, 2)
    state["pos_embed"] = grid_sinusoid(4, 4, 144, base / 4)[None]
    state["y_embedder.y_embedding"] = torch.zeros(120, 20)
    file = written(state, tmp_path / "pixart.pth")
    back = read_backbone(file)
    assert_same(net, back)
    assert back.patches.base == base
    draw = torch.Generator().manual_seed(1)
    x, tokens = torch.randn(2, 4, 8, 8, generator=draw), torch.randn(2, 7, 20, generator=draw)
    time = torch.tensor([300.0, 990.0])
    expected = original_pixart(state, x, time, tokens, micro)
    assert expected.std() > 0.1
    torch.testing.assert_close(back(x, time, Condition(tokens=tokens)), expected, atol=1e-5, rtol=1e-5)
    again = PixArt(4, 20, **sizes)
    initialize(again, file)
    assert_same(net, again)


def test_a_pixart_without_a_table_spans_the_published_positions(tmp_path):
    state = pixart.ORIGINAL.export(randomized(PixArt(4, 20, width=144, depth=1, heads=2)), 1)
    assert read_backbone(written(state, tmp_path / "pixart.pth")).patches.base == 32


def test_a_file_that_runs_code_is_not_read(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "evil"), "w"))

    torch.save({"state_dict": {"t_block.1.weight": Evil()}}, tmp_path / "pixart.pth")
    with pytest.raises(ValueError, match="such a file may run code and is not read"):
        read_backbone(tmp_path / "pixart.pth")
    assert not (tmp_path / "evil").exists()


def without(name):
    def change(state):
        del state[name]

    return change


@pytest.mark.parametrize(("change", "fault"), [
    (without("pos_embed"), "is not a whole file of the original code: it has no 'pos_embed'"),
    (without("joint_blocks.1.x_block.mlp.fc1.bias"), "1 missing: joint_blocks.1.x_block.mlp.fc1.bias"),
    (lambda state: state.update(extra=torch.zeros(1)), "1 unknown: extra"),
    (without("joint_blocks.0.x_block.attn.qkv.weight"), "is not a file of the original code of DiT, SiT, PixArt"),
    (lambda state: state.update({"x_embedder.proj.weight": torch.zeros(32, 16, 2, 2)}), "is not a file of the original"),
])  # fmt: skip
def test_a_file_that_does_not_fit_is_refused_with_its_keys(change, fault, tmp_path):
    state = sd3.ORIGINAL.export(sd3_net(), 3)
    change(state)
    file = written(state, tmp_path / "sd3.safetensors", "model.diffusion_model.")
    with pytest.raises(ValueError, match=fault) as error:
        read_backbone(file)
    assert "\n" not in str(error.value)


def test_a_file_of_another_model_is_refused(tmp_path):
    file = written(sd3.ORIGINAL.export(sd3_net(), 3), tmp_path / "sd3.safetensors")
    with pytest.raises(ValueError, match="is a MMDiT, and the config's backbone a DiT: choose the backbone"):
        initialize(DiT(4, 3, width=48, depth=1, heads=4), file)
