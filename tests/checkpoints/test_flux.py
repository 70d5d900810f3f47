"""Import and export of FLUX.1's weights, against diffusers' class and pipeline: one step, guided sampling, pictures."""

from functools import partial

import numpy as np
import pytest
import torch

from dit.backbones.flux import Flux
from dit.build import build_backbone
from dit.checkpoints.flux import from_diffusers, to_diffusers
from dit.checkpoints.foreign import initialize, read_backbone, write_folder
from dit.checkpoints.pipeline_folder import NotExportable, shift_by_resolution, write_pipeline
from dit.checkpoints.read_pipeline import TEXT_LENGTH, read_scheduler
from dit.diffusion.denoiser import Denoiser
from dit.diffusion.guidance import ClassifierFree, Embedded
from dit.diffusion.noise import Noise
from dit.diffusion.path import Linear
from dit.diffusion.prediction import Flow
from dit.diffusion.resolution import ResolutionGrid, at_shape, exponential_shift, sqrt_shift
from dit.diffusion.sampler.ddim import ddim
from dit.diffusion.time import ShiftedGrid, UniformTime
from dit.encoders.autoencoder import PretrainedAutoencoder
from dit.encoders.joined import flux
from dit.pipeline import Pipeline, Recipe
from dit.runs import load
from dit.types import Condition

from ..conftest import composed
from ..encoders.folders import save_flux
from ..encoders.small import saved
from .theirs import assert_round_trip_is_exact, noise, texts, with_varied_norms

DEV = {
    "patch_size": 1, "in_channels": 64, "out_channels": None, "num_layers": 2, "num_single_layers": 3,
    "attention_head_dim": 16, "num_attention_heads": 3, "joint_attention_dim": 20, "pooled_projection_dim": 10,
    "guidance_embeds": True, "axes_dims_rope": (4, 6, 6),
}  # fmt: skip
SCHNELL = DEV | {"guidance_embeds": False}
WIDE = DEV | {
    "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 128, "num_attention_heads": 24,
    "joint_attention_dim": 4096, "pooled_projection_dim": 768, "axes_dims_rope": (16, 56, 56),
}  # fmt: skip
SIZES = {"dev": DEV, "schnell": SCHNELL, "wide": WIDE}
PUBLISHED = WIDE | {"num_layers": 19, "num_single_layers": 38}
GRID, STEPS, SCALE, SHAPE = ResolutionGrid(UniformTime(), exponential_shift), 8, 3.5, (16, 8, 12)
PROMPTS, SEEDS = ["a red star", "large blue circle on the black"], [3, 4]


def theirs(config=DEV):
    """diffusers' class with random weights, with a different value for each norm."""
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    return with_varied_norms(FluxTransformer2DModel(**config).eval())


def call_theirs(net, x, time, text, scale=SCALE):
    """The output of diffusers' class for latents, packed and unpacked by its pipeline. time: in [0, 1]."""
    from diffusers import FluxPipeline

    packed = FluxPipeline._pack_latents(x, *x.shape)
    places = FluxPipeline._prepare_latent_image_ids(len(x), x.shape[2] // 2, x.shape[3] // 2, "cpu", x.dtype)
    guidance = torch.full((len(x),), scale) if net.config.guidance_embeds else None
    output = net(packed, text.tokens, text.pooled, time, places, torch.zeros(text.tokens.shape[1], 3), guidance).sample
    return FluxPipeline._unpack_latents(output, 8 * x.shape[2], 8 * x.shape[3], 8)


@pytest.mark.parametrize(("size", "sides"), [
    ("dev", (8, 8)), ("dev", (4, 12)), ("schnell", (6, 10)),
    pytest.param("wide", (4, 12), marks=pytest.mark.slow),
])  # fmt: skip
@torch.no_grad()
def test_the_forward_pass_equals_diffusers(size, sides):
    other, text = theirs(SIZES[size]), texts(SIZES[size], 3)
    net = from_diffusers(other.config, other.state_dict())
    x, time = noise(3, 16, *sides), torch.tensor([0.0, 500.5, 1000.0])
    expected = call_theirs(other, x, time / 1000, text)
    assert expected.std() > 0.1
    torch.testing.assert_close(net(x, time, text), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("size", "scale"), [
    ("dev", 1.0), ("dev", 4.0), ("schnell", 4.0), pytest.param("wide", 4.0, marks=pytest.mark.slow),
])  # fmt: skip
@torch.no_grad()
def test_guided_sampling_equals_diffusers(size, scale):
    """With classifier-free guidance beside the embedded scale, and without. The times are shifted by resolution."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    other, text, null = theirs(SIZES[size]), texts(SIZES[size], 2), texts(SIZES[size], 1, seed=3)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    tokens = SHAPE[1] * SHAPE[2] // 4
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / STEPS, STEPS), mu=calculate_shift(tokens))
    x, both = noise(2, *SHAPE), Condition.cat([text, null.expand(2)])
    for t in scheduler.timesteps:
        cond, plain = call_theirs(other, torch.cat([x, x]), t.expand(4) / 1000, both).chunk(2)
        x = scheduler.step(plain + scale * (cond - plain), t, x).prev_sample
    net, path = from_diffusers(other.config, other.state_dict()), Linear()
    denoise = ClassifierFree(scale)(Denoiser(net, path, Flow()), text, null)
    result = ddim(denoise, noise(2, *SHAPE), at_shape(GRID, SHAPE)(path, STEPS), noise)
    assert (result - noise(2, *SHAPE)).abs().max() > 0.5
    torch.testing.assert_close(result, x, atol=1e-5, rtol=0)


def woken(**options):
    """A network with random weights in all parts and the sizes of the encoders below."""
    sizes = {"width": 48, "depth": 1, "single_depth": 2, "heads": 3, "reads_padding": True}
    net, draw = Flux(16, 48, 16, **sizes | options).eval(), torch.Generator().manual_seed(4)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1, generator=draw)
    return net


@pytest.mark.parametrize(("options", "guidance", "grid"), [
    ({"guidance_scale": 3.5}, Embedded(2.0), GRID),
    ({}, ClassifierFree(1.0), UniformTime()),
    ({}, ClassifierFree(1.0), ShiftedGrid(UniformTime(), 3.0)),
    ({"guidance_scale": 3.5}, Embedded(2.0), ResolutionGrid(UniformTime(), partial(exponential_shift, high=1.5))),
], ids=["dev", "schnell", "shifted", "other shift"])  # fmt: skip
def test_an_exported_pipeline_samples_the_same_pictures_in_diffusers_and_here(
    options, guidance, grid, tmp_path, monkeypatch
):
    from diffusers import FluxPipeline

    net, text = woken(**options), flux(str(save_flux(tmp_path / "text")), length=12)
    vae = PretrainedAutoencoder(str(saved(tmp_path, "kl_16")))
    ours = Pipeline(net, Linear(), Flow(), text, vae, SHAPE)
    notes = write_pipeline(tmp_path / "out", net, Linear(), Flow(), grid, text, vae, SHAPE[-1])
    assert notes[0] == "FluxPipeline.from_pretrained samples from it what is sampled here with sampler=euler"
    assert notes[1:] == ["call it with max_sequence_length=12"]
    pipe = FluxPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    packed = FluxPipeline._pack_latents(Noise(SEEDS, SHAPE).start(), 2, *SHAPE)
    expected = pipe(
        PROMPTS, guidance_scale=guidance.scale, num_inference_steps=STEPS, output_type="pt", max_sequence_length=12,
        latents=packed, height=SHAPE[1] * vae.factor, width=SHAPE[2] * vae.factor,
    ).images  # fmt: skip
    result = ours(PROMPTS, SEEDS, Recipe(ddim, grid, STEPS, guidance)).images
    assert expected.shape == (2, 3, 16, 24)
    assert expected.std() > 0.01
    assert (expected[0] - expected[1]).abs().max() > 0.01
    torch.testing.assert_close((result / 2 + 0.5).clamp(0, 1), expected, atol=1e-5, rtol=0)
    monkeypatch.setitem(TEXT_LENGTH, "FluxPipeline", 12)
    run = load(tmp_path / "out", device="cpu")
    assert run.recipe().steps == (28 if "guidance_scale" in options else 4)
    assert run.pipeline.latent_shape == (16, 128, 128)
    again = run.sample(PROMPTS, SEEDS, size=(24, 16), steps=STEPS, guidance=guidance.scale).images
    torch.testing.assert_close(again, result, atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", [DEV, SCHNELL], ids=["dev", "schnell"])
def test_round_trips_are_exact(config):
    assert_round_trip_is_exact(theirs(config), config, from_diffusers, to_diffusers)


def test_an_exported_folder_is_read_by_diffusers_and_here(tmp_path):
    from diffusers import FluxTransformer2DModel

    net = woken(guidance_scale=1.0)
    write_folder(net, tmp_path, 8)
    _, info = FluxTransformer2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    back = read_backbone(tmp_path).state_dict()
    assert back.keys() == net.state_dict().keys()
    assert all(torch.equal(back[k], v) for k, v in net.state_dict().items())


def test_weights_start_a_backbone_of_another_guidance_scale_and_of_no_other_axes(tmp_path):
    net = woken(guidance_scale=3.5)
    write_folder(net, tmp_path, 8)
    other = woken(guidance_scale=1.0)
    initialize(other, tmp_path)
    assert all(torch.equal(other.state_dict()[k], v) for k, v in net.state_dict().items())
    assert other.guidance_scale == 1.0
    with pytest.raises(ValueError, match=r"axes is \(4, 6, 6\), not \(8, 4, 4\)"):
        initialize(woken(guidance_scale=3.5, axes=(8, 4, 4)), tmp_path)


def test_the_published_size_fits_weight_by_weight_and_is_the_yaml():
    from diffusers import FluxTransformer2DModel

    node, sizes = composed("train", ["backbone=flux_dev"]).backbone, {"token_dim": 4096, "pooled_dim": 768}
    with torch.device("meta"):
        other = FluxTransformer2DModel(**PUBLISHED)
        net = build_backbone(node, {"channels": 16, "outputs": 1}, sizes)
        config, state = to_diffusers(net, 128)
    assert sum(p.numel() for p in net.parameters()) / 1e9 == pytest.approx(11.90, abs=0.005)
    assert config == {"_class_name": "FluxTransformer2DModel"} | PUBLISHED | {"axes_dims_rope": [16, 56, 56]}
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in other.state_dict().items()}


def test_keys_are_listed_by_name():
    other = theirs()
    state = other.state_dict()
    state["extra.weight"] = torch.zeros(1)
    del state["transformer_blocks.1.attn.add_k_proj.bias"]
    state["single_transformer_blocks.2.proj_mlp.weight"] = torch.zeros(4, 3)
    with pytest.raises(ValueError, match="do not fit Flux") as error:
        from_diffusers(other.config, state)
    for fault in (
        "1 missing: transformer_blocks.1.attn.add_k_proj.bias",
        "1 of another shape: single_transformer_blocks.2.proj_mlp.weight (4, 3) for (192, 48)",
        "1 unknown: extra.weight",
    ):
        assert fault in str(error.value)


def test_a_scheduler_of_another_shift_is_refused(tmp_path):
    from diffusers import FlowMatchEulerDiscreteScheduler

    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="time_shift_type=linear is not one of exponential"):
        read_scheduler(tmp_path / "scheduler_config.json", by_resolution=True)
    with pytest.raises(ValueError, match="dit samples with use_dynamic_shifting=False only"):
        read_scheduler(tmp_path / "scheduler_config.json")


@pytest.mark.parametrize(("call", "fault"), [
    (lambda: from_diffusers(DEV | {"patch_size": 2}, {}), "the config has patch_size=2, in_channels=64"),
    (lambda: from_diffusers(DEV | {"out_channels": 128}, {}), "out_channels=128: FLUX.1 has"),
    (lambda: from_diffusers(DEV | {"axes_dims_rope": (4, 6)}, {}), r"axes=\[4, 6\] must be 3 even numbers"),
    (lambda: from_diffusers({"in_channels": 4}, {}), "it has no 'num_attention_heads'"),
    (lambda: to_diffusers(woken(reads_padding=False), 8), "has reads_padding=true: this"),
    (lambda: to_diffusers(woken(patch=1), 8), "has patch=2: this"),
    (lambda: to_diffusers(woken(mlp_ratio=2.0), 8), "has mlp_ratio=4: this"),
    (lambda: shift_by_resolution(ResolutionGrid(UniformTime(), sqrt_shift)), "by exponential_shift only"),
])  # fmt: skip
def test_unsupported_imports_and_exports_are_refused(call, fault):
    with pytest.raises((ValueError, NotExportable), match=fault):
        call()
