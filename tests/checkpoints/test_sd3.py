"""Import and export of SD3's weights, against diffusers' class: one step, guided sampling, and pictures."""

import numpy as np
import pytest
import torch

from dit.backbones.mmdit import MMDiT
from dit.build import build_backbone
from dit.checkpoints.foreign import read_backbone, write_folder
from dit.checkpoints.sd3 import from_diffusers, to_diffusers
from dit.diffusion.denoiser import Denoiser
from dit.diffusion.guidance import ClassifierFree
from dit.diffusion.noise import Noise
from dit.diffusion.path import Linear
from dit.diffusion.prediction import Flow
from dit.diffusion.sampler.ddim import ddim
from dit.diffusion.time import ShiftedGrid, UniformTime
from dit.layers.mlp import SwiGLU
from dit.layers.norm import rms_norm
from dit.pipeline import Pipeline, Recipe
from dit.types import Condition

from ..conftest import composed
from .theirs import assert_round_trip_is_exact, noise, texts, with_varied_norms

SD3 = {
    "sample_size": 8, "patch_size": 2, "in_channels": 16, "num_layers": 3, "attention_head_dim": 12,
    "num_attention_heads": 4, "joint_attention_dim": 20, "caption_projection_dim": 48, "pooled_projection_dim": 10,
    "out_channels": 16, "pos_embed_max_size": 6, "dual_attention_layers": (), "qk_norm": None,
}  # fmt: skip
SD35 = SD3 | {"dual_attention_layers": (0, 1), "qk_norm": "rms_norm"}
WIDE = SD35 | {
    "num_layers": 2, "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096,
    "caption_projection_dim": 1536, "pooled_projection_dim": 2048, "dual_attention_layers": (0,),
}  # fmt: skip
SIZES = {"sd3": SD3, "sd35": SD35, "wide": WIDE}
# The configs of the published transformers, and their billions of parameters. (The 2.5 of 3.5-medium count its table.)
MEDIUM = WIDE | {"sample_size": 128, "num_layers": 24, "pos_embed_max_size": 192}
PUBLISHED = {
    "sd3_medium": (MEDIUM | {"dual_attention_layers": (), "qk_norm": None}, 2.03),
    "sd35_medium": (MEDIUM | {"dual_attention_layers": tuple(range(13)), "pos_embed_max_size": 384}, 2.24),
    "sd35_large": (
        MEDIUM
        | {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "dual_attention_layers": ()},
        8.06,
    ),
}
GRID, STEPS, SCALE = ShiftedGrid(UniformTime(), 3.0), 10, 4.0
SIGMAS = np.linspace(1, 0, STEPS + 1)[:-1]  # before the shift, which diffusers' scheduler makes too


def theirs(config=SD3):
    """diffusers' class with random weights, with a different value for each norm and a random table."""
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    net = with_varied_norms(SD3Transformer2DModel(**config).eval())
    net.pos_embed.pos_embed += 0.1 * torch.randn_like(net.pos_embed.pos_embed)
    return net


def call_theirs(net, x, time, text):
    """The output of diffusers' class."""
    return net(x, encoder_hidden_states=text.tokens, pooled_projections=text.pooled, timestep=time).sample


@pytest.mark.parametrize(("size", "sides"), [
    ("sd3", (8, 8)), ("sd3", (4, 12)), ("sd3", (6, 10)), ("sd35", (8, 8)), ("sd35", (4, 12)), ("wide", (4, 12)),
])  # fmt: skip
@torch.no_grad()
def test_the_forward_pass_equals_diffusers(size, sides):
    other, text = theirs(SIZES[size]), texts(SIZES[size], 3)
    net = from_diffusers(other.config, other.state_dict())
    x, time = noise(3, 16, *sides), torch.tensor([0.0, 500.5, 1000.0])
    expected = call_theirs(other, x, time, text)
    assert expected.std() > 0.1
    torch.testing.assert_close(net(x, time, text), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_guided_sampling_equals_diffusers(size):
    from diffusers import FlowMatchEulerDiscreteScheduler

    other, text, null = theirs(SIZES[size]), texts(SIZES[size], 2), texts(SIZES[size], 1, seed=3)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=SIGMAS)
    x, both = noise(2, 16, 8, 8), Condition.cat([text, null.expand(2)])
    for t in scheduler.timesteps:
        cond, plain = call_theirs(other, torch.cat([x, x]), t.expand(4), both).chunk(2)
        x = scheduler.step(plain + SCALE * (cond - plain), t, x).prev_sample
    net, path = from_diffusers(other.config, other.state_dict()), Linear()
    denoise = ClassifierFree(SCALE)(Denoiser(net, path, Flow()), text, null)
    result = ddim(denoise, noise(2, 16, 8, 8), GRID(path, STEPS), noise)
    assert (result - noise(2, 16, 8, 8)).abs().max() > 0.5
    torch.testing.assert_close(result, x, atol=1e-5, rtol=0)


class TextByLength:
    """A text encoder that encodes each caption by its length."""

    def encode(self, prompts):
        return Condition.cat([texts(SD3, 1, seed=len(prompt)) for prompt in prompts])

    def null(self):
        return self.encode([""])


class Decoder:
    """The autoencoder of a diffusers pipeline."""

    channels, factor = 16, 2

    def __init__(self, vae):
        self.vae = vae

    def to(self, device):
        return self

    def decode(self, latents):
        return self.vae.decode(latents / self.vae.config.scaling_factor + self.vae.config.shift_factor).sample


def woken(**options):
    """A network with random values in its zero-initialised parts and the sizes of SD3 above."""
    torch.manual_seed(4)
    sizes = {"width": 48, "depth": 3, "heads": 4, "reads_padding": True, "base": 4}
    net = MMDiT(16, 20, 10, **sizes | {"position": "cropped", "largest": 6} | options).eval()
    for p in net.parameters():
        if p.abs().max() == 0:
            torch.nn.init.normal_(p, std=0.1)
    return net


@pytest.mark.parametrize("options", [{}, {"dual": 2, "qk_norm": True}], ids=["sd3", "sd35"])
def test_an_exported_folder_samples_the_same_pictures_in_diffusers(options, tmp_path):
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
    from diffusers import StableDiffusion3Pipeline as Theirs

    net, folder = woken(**options), tmp_path / "transformer"
    write_folder(net, folder, 8)
    transformer, info = SD3Transformer2DModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.manual_seed(5)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, block_out_channels=(8, 8),
        norm_num_groups=4, latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609,
        use_quant_conv=False, use_post_quant_conv=False,
    ).eval()  # fmt: skip
    encoders = {f"{kind}{n}": None for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")}
    pipe = Theirs(transformer, FlowMatchEulerDiscreteScheduler(shift=3.0), vae, **encoders)
    pipe.set_progress_bar_config(disable=True)
    ours, prompts, seeds = (
        Pipeline(net, Linear(), Flow(), TextByLength(), Decoder(vae), (16, 8, 8)),
        ["red", "a star"],
        [3, 4],
    )
    result = ours(prompts, seeds, Recipe(ddim, GRID, STEPS, ClassifierFree(SCALE))).images
    text, null = ours.encode(prompts), TextByLength().null().expand(2)
    expected = pipe(
        prompt_embeds=text.tokens, pooled_prompt_embeds=text.pooled, negative_prompt_embeds=null.tokens,
        negative_pooled_prompt_embeds=null.pooled, guidance_scale=SCALE, latents=Noise(seeds, (16, 8, 8)).start(),
        num_inference_steps=STEPS, sigmas=list(SIGMAS), output_type="pt",
    ).images  # fmt: skip
    assert expected.shape == (2, 3, 16, 16)
    assert expected.std() > 0.01
    torch.testing.assert_close((result / 2 + 0.5).clamp(0, 1), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("config", [SD3, SD35, SD3 | {"out_channels": 32}], ids=["sd3", "sd35", "learned range"])
def test_round_trips_are_exact(config):
    assert_round_trip_is_exact(theirs(config), config, from_diffusers, to_diffusers, config["sample_size"])


@pytest.mark.parametrize("options", [{}, {"dual": 1, "qk_norm": True, "depth": 2}], ids=["sd3", "sd35"])
def test_an_exported_folder_is_read_back_exactly(options, tmp_path):
    net = woken(**options)
    write_folder(net, tmp_path, 8)
    back = read_backbone(tmp_path).state_dict()
    assert back.keys() == net.state_dict().keys()
    assert all(torch.equal(back[k], v) for k, v in net.state_dict().items())


def test_the_table_is_computed_as_diffusers_does():
    """If none is given: up to the rounding of angles up to 64 in float32."""
    from diffusers.models.embeddings import PatchEmbed

    other = PatchEmbed(height=128, width=128, patch_size=2, in_channels=4, embed_dim=16, pos_embed_max_size=192)
    net = MMDiT(4, 8, 8, width=16, depth=1, heads=2, position="cropped", base=64, largest=192)
    torch.testing.assert_close(net.patches.table, other.pos_embed, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("config", "billions"), PUBLISHED.values(), ids=PUBLISHED)
def test_published_sizes_fit_weight_by_weight(config, billions):
    from diffusers import SD3Transformer2DModel

    with torch.device("meta"):
        other = SD3Transformer2DModel(**config)
        net = from_diffusers(config, other.state_dict())
        result = to_diffusers(net, config["sample_size"])[1]
    count = sum(p.numel() for name, p in net.named_parameters() if name != "patches.table")  # theirs is a buffer
    assert count == sum(p.numel() for p in other.parameters())
    assert count / 1e9 == pytest.approx(billions, abs=0.005)
    assert {k: v.shape for k, v in result.items()} == {k: v.shape for k, v in other.state_dict().items()}


def test_the_yaml_is_sd3_medium():
    """With 16 latent channels, and text encoder widths of 4096 and 2048."""
    node, sizes = composed("train", ["backbone=mmdit_sd3_medium"]).backbone, {"token_dim": 4096, "pooled_dim": 2048}
    with torch.device("meta"):
        net = build_backbone(node, {"channels": 16, "outputs": 1}, sizes)
        config = to_diffusers(net, 128)[0]
    assert config == {"_class_name": "SD3Transformer2DModel"} | MEDIUM | {"dual_attention_layers": [], "qk_norm": None}


@pytest.mark.parametrize("config", [SD3, SD35], ids=["sd3", "sd35"])
def test_keys_are_listed_by_name(config):
    other = theirs(config)
    state = other.state_dict()
    state["extra.weight"] = torch.zeros(1)
    del state["transformer_blocks.1.attn.add_k_proj.bias"]
    state["transformer_blocks.2.norm1_context.linear.weight"] = torch.zeros(4, 3)
    with pytest.raises(ValueError, match="do not fit MMDiT") as error:
        from_diffusers(other.config, state)
    for fault in (
        "1 missing: transformer_blocks.1.attn.add_k_proj.bias",
        "1 of another shape: transformer_blocks.2.norm1_context.linear.weight (4, 3) for (96, 48)",
        "1 unknown: extra.weight",
    ):
        assert fault in str(error.value)


def test_weights_of_the_other_kind_are_refused():
    with pytest.raises(ValueError, match=r"unknown: transformer_blocks.0.attn.norm_q.weight"):
        from_diffusers(SD3, theirs(SD35).state_dict())
    with pytest.raises(ValueError, match=r"missing: transformer_blocks.0.attn.norm_q.weight"):
        from_diffusers(SD35, theirs(SD3).state_dict())


@pytest.mark.parametrize(("call", "fault"), [
    (lambda: from_diffusers(SD3 | {"qk_norm": "layer_norm"}, {}), "qk_norm='layer_norm'"),
    (lambda: from_diffusers(SD3 | {"dual_attention_layers": (0, 2)}, {}), r"dual_attention_layers=\[0, 2\]"),
    (lambda: from_diffusers({"in_channels": 4}, {}), "it has no 'patch_size'"),
    (lambda: to_diffusers(woken(position="rotary", largest=None), 8), "has position=cropped: this"),
    (lambda: to_diffusers(woken(registers=2), 8), "has no registers: this"),
    (lambda: to_diffusers(woken(overlap=1), 8), "has no overlap: this"),
    (lambda: to_diffusers(woken(reads_padding=False), 8), "has reads_padding=true: this"),
    (lambda: to_diffusers(woken(norm=rms_norm), 8), "has layer norms: this"),
    (lambda: to_diffusers(woken(mlp=SwiGLU), 8), "has a plain MLP of ratio 4: this"),
    (lambda: to_diffusers(woken(mlp_ratio=2.0), 8), "has a plain MLP of ratio 4: this"),
])  # fmt: skip
def test_unsupported_imports_and_exports_are_refused(call, fault):
    with pytest.raises(ValueError, match=fault):
        call()
