"""Import and export of PixArt's weights, against diffusers' class and its two pipelines."""

import pytest
import torch

from dit.backbones.pixart import PixArt
from dit.checkpoints.foreign import read_folder, write_folder
from dit.checkpoints.pixart import from_diffusers, to_diffusers
from dit.diffusion.denoiser import Denoiser
from dit.diffusion.guidance import ClassifierFree
from dit.diffusion.path import DiscreteBetas, linear_betas
from dit.diffusion.prediction import Eps, LearnedRange, timestep
from dit.diffusion.sampler.ddim import ddim
from dit.diffusion.sampler.multistep import dpmpp, midpoint
from dit.diffusion.time import Leading, Linspace
from dit.layers.mlp import SwiGLU
from dit.layers.norm import rms_norm
from dit.types import Condition

PATH = DiscreteBetas(linear_betas(1000))
TINY = {
    "num_attention_heads": 4, "attention_head_dim": 12, "num_layers": 2, "cross_attention_dim": 48, "caption_channels": 20,
}  # fmt: skip
WIDE = {
    "num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 2, "cross_attention_dim": 1152, "caption_channels": 20,
}  # fmt: skip
ALPHA = {**TINY, "sample_size": 16}
MICRO = {**TINY, "sample_size": 128}  # with micro-conditions, and an interpolation scale of 2
SIGMA = {**TINY, "sample_size": 16, "interpolation_scale": 0.5, "use_additional_conditions": False}
MODELS = {"alpha": ALPHA, "micro": MICRO, "sigma": SIGMA, "wide": {**WIDE, "sample_size": 128}}


def theirs(**config):
    from diffusers import PixArtTransformer2DModel

    torch.manual_seed(0)
    return PixArtTransformer2DModel(**config).eval()


def condition(count=2, length=6, dim=20, seed=1):
    draw = torch.Generator().manual_seed(seed)
    mask = torch.arange(length) < torch.tensor([[length], [2], [4]])[:count]
    return Condition(tokens=torch.randn(count, length, dim, generator=draw), mask=mask)


NULL = Condition(tokens=condition(1, seed=2).tokens, mask=torch.arange(6)[None] < 1)


def call_theirs(net, x, t, given):
    """The output of diffusers' class as its pipelines call it, with 8 pixels per cell."""
    height, width = (8.0 * side for side in x.shape[2:])
    size = {
        "resolution": torch.tensor([[height, width]] * len(x)),
        "aspect_ratio": torch.full((len(x), 1), height / width),
    }
    micro = size if net.use_additional_conditions else None
    return net(
        x, encoder_hidden_states=given.tokens, encoder_attention_mask=given.mask, timestep=t, added_cond_kwargs=micro,
    ).sample  # fmt: skip


@pytest.mark.parametrize("sides", [(16, 16), (8, 20)], ids=str)
@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_the_forward_pass_equals_diffusers(config, sides):
    other = theirs(**config)
    net = from_diffusers(other.config, other.state_dict())
    x = torch.randn(3, 4, *sides, generator=torch.Generator().manual_seed(1))
    given, t = condition(3), torch.tensor([0, 500, 999])
    expected = call_theirs(other, x, t, given)
    assert expected.std() > 0.1
    torch.testing.assert_close(net(x, t.float(), given), expected, atol=1e-5, rtol=1e-5)


def guided(net, given, null, x, scale=4.5, sampler_name="dpmpp"):
    """Ten guided steps of dit."""
    denoise = ClassifierFree(scale)(Denoiser(net, PATH, LearnedRange(Eps(c_noise=timestep))), given, null)
    if sampler_name == "ddim":
        return ddim(denoise, x, Leading()(PATH, 10), lambda k: None)
    return dpmpp(denoise, x, Linspace()(PATH, 10), lambda k: None, rule=midpoint)


def guided_by_theirs(net, given, null, x, scale=4.5, sampler_name="dpmpp"):
    """The same ten steps with diffusers' model and scheduler."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False) if sampler_name == "ddim" else dpm_solver()
    scheduler.set_timesteps(10)
    both = Condition.cat([null.expand(len(x)), given])
    for t in scheduler.timesteps:
        eps = call_theirs(net, torch.cat([x, x]), t.expand(2 * len(x)), both)[:, :4]
        plain, cond = eps.chunk(2)
        x = scheduler.step(plain + scale * (cond - plain), t, x).prev_sample
    return x


def dpm_solver():
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(beta_schedule="linear")  # as the published models have it


@pytest.mark.parametrize(("name", "sampler_name"), [("alpha", "ddim"), *((name, "dpmpp") for name in MODELS)])
@torch.no_grad()
def test_guided_sampling_equals_diffusers(name, sampler_name):
    other = theirs(**MODELS[name])
    net = from_diffusers(other.config, other.state_dict())
    x = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(3))
    expected = guided_by_theirs(other, condition(), NULL, x, sampler_name=sampler_name)
    size = expected.abs().max()  # an untrained network's run grows large
    torch.testing.assert_close(
        guided(net, condition(), NULL, x, sampler_name=sampler_name) / size, expected / size, atol=1e-5, rtol=0
    )


def woken(**options):
    """A network with random values in its zero-initialised parts."""
    torch.manual_seed(2)
    net = PixArt(4, 20, outputs=2, width=48, depth=2, heads=4, **options).eval()
    for p in net.parameters():
        if p.abs().max() == 0:
            torch.nn.init.normal_(p, std=0.3)
    return net


def pipeline_folder(folder, kind, transformer):
    """A folder of a diffusers pipeline; its other parts are tiny and random."""
    import diffusers
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    torch.manual_seed(5)
    words = ["<pad>", "</s>", "<unk>", "▁a", "▁red", "▁blue", "▁star", "▁on", "▁black"]
    tokenizer = T5Tokenizer(vocab=[(word, -float(place)) for place, word in enumerate(words)], extra_ids=0)
    sizes = {"vocab_size": len(words), "d_model": 20, "d_kv": 5, "d_ff": 32, "num_layers": 2, "num_heads": 4}
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4, 8), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    pipe = getattr(diffusers, kind)(tokenizer, T5EncoderModel(T5Config(**sizes)), vae, transformer, dpm_solver())
    pipe.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("kind", "options", "sample_size", "sides"), [
    ("PixArtSigmaPipeline", {"base": 4}, 16, (16, 16)),
    ("PixArtSigmaPipeline", {"base": 4}, 16, (8, 20)),
    ("PixArtAlphaPipeline", {"base": 8}, 16, (16, 16)),
    ("PixArtAlphaPipeline", {"base": 32, "pixels_per_cell": 2}, 128, (16, 12)),
])  # fmt: skip
def test_an_exported_folder_samples_the_same_pictures_in_diffusers(kind, options, sample_size, sides, tmp_path):
    import diffusers

    net = woken(**options)
    folder = pipeline_folder(tmp_path / "pipe", kind, theirs(**TINY))
    write_folder(net, folder / "transformer", sample_size)
    pipe = getattr(diffusers, kind).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    prompts, factor = ["a red star", "a blue star on black"], pipe.vae_scale_factor
    x = torch.randn(2, 4, *sides, generator=torch.Generator().manual_seed(6))
    expected_images = pipe(
        prompts, num_inference_steps=10, guidance_scale=4.5, height=factor * sides[0], width=factor * sides[1], latents=x,
        use_resolution_binning=False, max_sequence_length=8, clean_caption=False, output_type="pt",
    ).images  # fmt: skip
    with torch.no_grad():
        tokens, mask, null, null_mask = pipe.encode_prompt(prompts, max_sequence_length=8)
        given, empty = Condition(tokens, mask.bool()), Condition(null[:1], null_mask[:1].bool())
        latents = guided(net, given, empty, x) / pipe.vae.config.scaling_factor
        ours = (pipe.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    assert factor == 2
    assert expected_images.std() > 0.01
    torch.testing.assert_close(ours, expected_images, atol=2e-5, rtol=0)


@pytest.mark.parametrize("config", [ALPHA, MICRO, SIGMA], ids=["alpha", "micro", "sigma"])
def test_round_trips_are_exact(config):
    other = theirs(**config)
    state = other.state_dict()
    net = from_diffusers(other.config, state)
    exported, again = to_diffusers(net, config["sample_size"])
    assert set(again) == set(state)
    assert all(torch.equal(again[k], state[k]) for k in state)
    rebuilt = theirs(**{k: v for k, v in exported.items() if k != "_class_name"})
    assert rebuilt.config["out_channels"] == 8
    assert torch.equal(rebuilt.pos_embed.pos_embed, other.pos_embed.pos_embed)
    back = from_diffusers(exported, again)
    assert all(torch.equal(back.state_dict()[k], v) for k, v in net.state_dict().items())
    assert back.patches.base == net.patches.base


def test_a_network_without_micro_conditions_has_none_at_any_size():
    """Without the option, diffusers would infer them from sample_size=128."""
    other = theirs(**MICRO | {"use_additional_conditions": False, "out_channels": 4})
    net = from_diffusers(other.config, other.state_dict())
    config, state = to_diffusers(net, 128)
    assert config["use_additional_conditions"] is False
    assert config["out_channels"] == 4
    assert state.keys() == other.state_dict().keys()


def test_a_folder_is_written_and_read(tmp_path):
    net = woken(base=8)
    write_folder(net, tmp_path, 16)
    back = read_folder(tmp_path)
    assert isinstance(back, PixArt)
    assert all(torch.equal(back.state_dict()[k], v) for k, v in net.state_dict().items())


def test_a_folder_with_the_older_class_of_diffusers_is_read(tmp_path):
    net = woken(base=8)
    write_folder(net, tmp_path, 16)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace("PixArtTransformer2DModel", "Transformer2DModel"))
    assert isinstance(read_folder(tmp_path), PixArt)


def test_what_older_files_keep_is_passed_over():
    other = theirs(**ALPHA)
    more = {"caption_projection.y_embedding": torch.zeros(120, 20), "pos_embed.pos_embed": torch.zeros(1, 64, 48)}
    net = from_diffusers(other.config, other.state_dict() | more)
    assert set(to_diffusers(net, 16)[1]) == set(other.state_dict())


def test_keys_are_listed_by_name():
    other = theirs(**ALPHA)
    state = other.state_dict() | {"extra.weight": torch.zeros(1), "scale_shift_table": torch.zeros(3, 3)}
    del state["transformer_blocks.1.attn2.to_k.bias"]
    with pytest.raises(ValueError, match="do not fit PixArt") as error:
        from_diffusers(other.config, state)
    for fault in (
        "1 missing: transformer_blocks.1.attn2.to_k.bias", "scale_shift_table (3, 3) for (2, 48)", "1 unknown: extra.weight",
    ):  # fmt: skip
        assert fault in str(error.value)


def test_micro_conditions_that_the_config_denies_are_unknown():
    state = theirs(**MICRO).state_dict()
    with pytest.raises(ValueError, match=r"8 unknown: adaln_single\.emb\.resolution_embedder"):
        from_diffusers(ALPHA | {"in_channels": 4, "out_channels": 8, "patch_size": 2}, state)


@pytest.mark.parametrize(("call", "fault"), [
    (lambda: from_diffusers({"caption_channels": 8, "activation_fn": "geglu"}, {}), "activation_fn=geglu"),
    (lambda: from_diffusers({"norm_eps": 1e-5}, {}), "norm_eps=1e-05, caption_channels=None"),
    (lambda: to_diffusers(woken(qk_norm=True, registers=1), 16), "its qk_norm, registers"),
    (lambda: to_diffusers(woken(overlap=1), 16), "in its overlap"),
    (lambda: to_diffusers(woken(norm=rms_norm, mlp=SwiGLU), 16), "its norm, mlp"),
    (lambda: to_diffusers(woken(mlp_ratio=2, position="rotary"), 16), "its mlp_ratio, position"),
    (lambda: to_diffusers(woken(pixels_per_cell=8), 16), "sample_size=128"),
    (lambda: PixArt(4, 20, width=32, heads=4, depth=1, pixels_per_cell=8), "width=32 must be a multiple of 3"),
])  # fmt: skip
def test_what_cannot_go_in_or_out_is_refused(call, fault):
    with pytest.raises(ValueError, match=fault):
        call()


@pytest.mark.parametrize(("micro", "count"), [(True, 611_349_152), (False, 610_856_096)])
def test_the_published_size(micro, count):
    """PixArt-alpha XL/2 with T5-XXL's 4096 channels, to the last parameter; the paper says 0.6 billion."""
    from diffusers import PixArtTransformer2DModel

    with torch.device("meta"):
        net = PixArt(4, 4096, outputs=2, pixels_per_cell=8 if micro else None)
        other = PixArtTransformer2DModel(caption_channels=4096, use_additional_conditions=micro)
    counted = sum(p.numel() for p in net.parameters())
    assert counted == sum(p.numel() for p in other.parameters()) == count
