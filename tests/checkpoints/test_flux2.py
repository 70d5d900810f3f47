"""Import and export of FLUX.2's weights, against diffusers' class: one step, guided sampling, round trips."""

import numpy as np
import pytest
import torch

from dit.backbones.flux2 import Flux2
from dit.build import build_backbone
from dit.checkpoints.flux2 import from_diffusers, to_diffusers
from dit.checkpoints.foreign import initialize, read_backbone, write_folder
from dit.diffusion.denoiser import Denoiser
from dit.diffusion.guidance import ClassifierFree, Embedded
from dit.diffusion.path import Linear
from dit.diffusion.prediction import Flow
from dit.diffusion.resolution import EmpiricalGrid, at_shape
from dit.diffusion.sampler.ddim import ddim
from dit.diffusion.time import UniformTime

from ..conftest import composed
from .theirs import assert_round_trip_is_exact, noise, texts, with_varied_norms

DEV = {
    "patch_size": 1, "in_channels": 16, "out_channels": None, "num_layers": 2, "num_single_layers": 3,
    "attention_head_dim": 16, "num_attention_heads": 3, "joint_attention_dim": 20, "timestep_guidance_channels": 256,
    "mlp_ratio": 3.0, "axes_dims_rope": (4, 4, 4, 4), "rope_theta": 2000, "eps": 1e-6, "guidance_embeds": True,
}  # fmt: skip
KLEIN = DEV | {"guidance_embeds": False}
WIDE = KLEIN | {  # FLUX.2-klein-4B with one block of each kind
    "in_channels": 128, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 128, "num_attention_heads": 24,
    "joint_attention_dim": 7680, "axes_dims_rope": (32, 32, 32, 32),
}  # fmt: skip
SIZES = {"dev": DEV, "klein": KLEIN, "wide": WIDE}
PUBLISHED = DEV | {
    "in_channels": 128, "num_layers": 8, "num_single_layers": 48, "attention_head_dim": 128, "num_attention_heads": 48,
    "joint_attention_dim": 15360, "axes_dims_rope": (32, 32, 32, 32),
}  # fmt: skip
STEPS, SIDES = 8, (4, 6)


def theirs(config=DEV):
    """diffusers' class with random weights, with a different value for each norm."""
    from diffusers import Flux2Transformer2DModel

    torch.manual_seed(0)
    return with_varied_norms(Flux2Transformer2DModel(**config).eval())


def call_theirs(net, x, time, text, scale=3.5):
    """The output of diffusers' class for latents, packed and placed by its pipeline. time: in [0, 1]."""
    from diffusers import Flux2Pipeline

    guidance = torch.full((len(x),), scale) if net.config.guidance_embeds else None
    places = Flux2Pipeline._prepare_latent_ids(x)
    output = net(
        Flux2Pipeline._pack_latents(x),
        text.tokens,
        time,
        places,
        Flux2Pipeline._prepare_text_ids(text.tokens),
        guidance,
    ).sample
    return Flux2Pipeline._unpack_latents_with_ids(output, places)


@pytest.mark.parametrize(("size", "sides"), [
    ("dev", (4, 4)), ("dev", (2, 6)), ("klein", (3, 5)), pytest.param("wide", (2, 6), marks=pytest.mark.slow),
])  # fmt: skip
@torch.no_grad()
def test_the_forward_pass_equals_diffusers(size, sides):
    config = SIZES[size]
    other, text = theirs(config), texts(config, 3)
    net = from_diffusers(other.config, other.state_dict())
    x, time = noise(3, config["in_channels"], *sides), torch.tensor([0.0, 500.5, 1000.0])
    expected = call_theirs(other, x, time / 1000, text)
    assert expected.std() > 0.1
    torch.testing.assert_close(net(x, time, text), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("size", "guidance"), [
    ("dev", Embedded(2.5)), ("klein", ClassifierFree(4.0)),
    pytest.param("wide", ClassifierFree(4.0), marks=pytest.mark.slow),
], ids=["dev", "klein", "wide"])  # fmt: skip
@torch.no_grad()
def test_guided_sampling_equals_diffusers(size, guidance):
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

    config = SIZES[size]
    shape = (config["in_channels"], *SIDES)
    other, text, null = theirs(config), texts(config, 2), texts(config, 1, seed=3)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    mu = compute_empirical_mu(SIDES[0] * SIDES[1], STEPS)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / STEPS, STEPS), mu=mu)
    x = noise(2, *shape)
    for t in scheduler.timesteps:
        output = call_theirs(other, x, t.expand(2) / 1000, text, guidance.scale)
        if isinstance(guidance, ClassifierFree):
            plain = call_theirs(other, x, t.expand(2) / 1000, null.expand(2))
            output = plain + guidance.scale * (output - plain)
        x = scheduler.step(output, t, x).prev_sample
    net, path = from_diffusers(other.config, other.state_dict()), Linear()
    denoise = guidance(Denoiser(net, path, Flow()), text, null)
    result = ddim(denoise, noise(2, *shape), at_shape(EmpiricalGrid(UniformTime()), shape)(path, STEPS), noise)
    assert (result - noise(2, *shape)).abs().max() > 0.5
    torch.testing.assert_close(result, x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", [DEV, KLEIN], ids=["dev", "klein"])
def test_round_trips_are_exact(config):
    assert_round_trip_is_exact(theirs(config), config, from_diffusers, to_diffusers)


def woken(**options):
    sizes = {"width": 48, "depth": 1, "single_depth": 2, "heads": 3, "reads_padding": True}
    net, draw = Flux2(16, 20, **sizes | options).eval(), torch.Generator().manual_seed(4)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1, generator=draw)
    return net


def test_an_exported_folder_is_read_by_diffusers_and_here(tmp_path):
    from diffusers import Flux2Transformer2DModel

    net = woken(guidance_scale=1.0)
    write_folder(net, tmp_path, 8)
    _, info = Flux2Transformer2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    back, other = read_backbone(tmp_path), woken(guidance_scale=2.0)
    initialize(other, tmp_path)
    for loaded in (back, other):
        assert loaded.state_dict().keys() == net.state_dict().keys()
        assert all(torch.equal(loaded.state_dict()[k], v) for k, v in net.state_dict().items())
    (tmp_path / "again").mkdir()
    write_folder(back, tmp_path / "again", 8)  # no two weights share memory


def test_the_published_size_fits_weight_by_weight_and_is_the_yaml():
    from diffusers import Flux2Transformer2DModel

    node = composed("train", ["backbone=flux2_dev"]).backbone
    with torch.device("meta"):
        other = Flux2Transformer2DModel(**PUBLISHED)
        net = build_backbone(node, {"channels": 128, "outputs": 1}, {"token_dim": 15360})
        config, state = to_diffusers(net, 64)
    assert sum(p.numel() for p in net.parameters()) / 1e9 == pytest.approx(32.22, abs=0.005)
    assert config == {"_class_name": "Flux2Transformer2DModel"} | PUBLISHED | {"axes_dims_rope": [32] * 4}
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in other.state_dict().items()}


def test_keys_are_listed_by_name():
    other = theirs()
    state = other.state_dict()
    state["extra.weight"] = torch.zeros(1)
    del state["transformer_blocks.1.attn.add_k_proj.weight"]
    del state["single_transformer_blocks.0.attn.to_qkv_mlp_proj.weight"]
    with pytest.raises(ValueError, match="do not fit Flux2") as error:
        from_diffusers(other.config, state)
    for fault in (
        "3 missing: transformer_blocks.1.attn.add_k_proj.weight",
        "single_transformer_blocks.0.attn.to_qkv_mlp_proj.qkv.weight",
        "1 unknown: extra.weight",
    ):
        assert fault in str(error.value)


@pytest.mark.parametrize(("call", "fault"), [
    (lambda: from_diffusers(DEV | {"rope_theta": 10000}, {}), "the config has rope_theta=10000, which no published"),
    (lambda: from_diffusers(DEV | {"out_channels": 128}, {}), "out_channels=128: FLUX.2 has"),
    (lambda: from_diffusers(DEV | {"axes_dims_rope": (4, 6)}, {}), r"axes=\[4, 6\] must be 4 even numbers"),
    (lambda: from_diffusers({"in_channels": 4}, {}), "it has no 'num_attention_heads'"),
    (lambda: to_diffusers(woken(reads_padding=False), 8), "has reads_padding=true: this"),
    (lambda: to_diffusers(woken(patch=2), 8), "has patch=1: this"),
])  # fmt: skip
def test_unsupported_imports_and_exports_are_refused(call, fault):
    with pytest.raises(ValueError, match=fault):
        call()
