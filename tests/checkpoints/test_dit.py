"""Import and export of DiT's weights, against diffusers' class and outputs of the original code."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dit.backbones.dit import DiT
from dit.build import build_backbone
from dit.checkpoints.dit import from_diffusers, from_original, to_diffusers, to_original
from dit.diffusion.denoiser import Denoiser
from dit.diffusion.guidance import ClassifierFree
from dit.diffusion.path import DiscreteBetas, linear_betas
from dit.diffusion.prediction import Eps, LearnedRange, timestep
from dit.diffusion.sampler.ddim import ddim
from dit.diffusion.time import Leading
from dit.layers.mlp import SwiGLU
from dit.layers.norm import rms_norm
from dit.types import Condition

from ..conftest import composed
from .fixtures.make import waves


def theirs(width=48, heads=4, depth=2):
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    net = DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=width // heads, in_channels=4, out_channels=8, num_layers=depth,
        sample_size=8, patch_size=2, num_embeds_ada_norm=1000,
    ).eval()  # fmt: skip
    for block in net.transformer_blocks[1:]:  # a trained one has the same embedder in every block
        block.norm1.emb.load_state_dict(net.transformer_blocks[0].norm1.emb.state_dict())
    return net


def saved(net, folder, sample_size=8):
    """A diffusers folder of one of our networks."""
    config, state = to_diffusers(net, sample_size)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    return folder


def inputs():
    draw = torch.Generator().manual_seed(1)
    return torch.randn(3, 4, 8, 8, generator=draw), torch.tensor([0, 500, 999]), torch.tensor([1, 207, 1000])


@pytest.mark.parametrize(("width", "heads"), [(48, 4), (1152, 16)])
@torch.no_grad()
def test_the_forward_pass_equals_diffusers(width, heads):
    other = theirs(width, heads)
    net = from_diffusers(other.config, other.state_dict())
    x, t, y = inputs()
    expected = other(x, timestep=t, class_labels=y).sample
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(net(x, t.float(), Condition(label=y)), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def sampled(net, labels, seed):
    """Latents after ten guided DDIM steps, as in DiTPipeline."""
    path, draw = DiscreteBetas(linear_betas(1000)), torch.Generator().manual_seed(seed)
    x = torch.randn(len(labels), 4, 8, 8, generator=draw)
    denoiser = Denoiser(net, path, LearnedRange(Eps(c_noise=timestep)))
    null = Condition(label=torch.tensor([1000]))
    denoise = ClassifierFree(4.0)(denoiser, Condition(label=torch.tensor(labels)), null)
    return ddim(denoise, x, Leading()(path, 10), lambda k: None)


def pipeline(transformer):
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline

    torch.manual_seed(5)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4).eval()
    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False)
    pipe = DiTPipeline(transformer, vae, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pictures(pipe, labels, seed):
    draw = torch.Generator().manual_seed(seed)
    output = pipe(labels, guidance_scale=4.0, generator=draw, num_inference_steps=10, output_type="pt")
    return output.images


def decoded(pipe, latents):
    with torch.no_grad():
        return (pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize(("width", "heads"), [(48, 4), (1152, 16)])
def test_guided_sampling_equals_diffusers_pipeline(width, heads, monkeypatch):
    pipe, latents = pipeline(theirs(width, heads)), []
    net = from_diffusers(pipe.transformer.config, pipe.transformer.state_dict())
    decode = pipe.vae.decode
    monkeypatch.setattr(pipe.vae, "decode", lambda z: latents.append(z) or decode(z))
    pictures(pipe, [1, 207], 3)
    images, other = sampled(net, [1, 207], 3), latents[0] * pipe.vae.config.scaling_factor
    size = other.abs().max()  # an untrained network's run grows large
    torch.testing.assert_close(images / size, other / size, atol=1e-5, rtol=0)


def test_an_exported_folder_samples_the_same_pictures_in_diffusers(tmp_path):
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(2)
    net = DiT(4, 1000, outputs=2, width=48, depth=2, heads=4, time_shift=1.0).eval()
    for p in net.parameters():
        if p.abs().max() == 0:
            torch.nn.init.normal_(p, std=0.1)
    pipe = pipeline(DiTTransformer2DModel.from_pretrained(saved(net, tmp_path / "out")))
    images, expected = decoded(pipe, sampled(net, [9, 8], 4)), pictures(pipe, [9, 8], 4)
    assert ((expected > 0.05) & (expected < 0.95)).double().mean() > 0.2, "black and white would hide a difference"
    torch.testing.assert_close(images, expected, atol=1e-3, rtol=0)


def test_round_trips_are_exact():
    state = theirs().state_dict()
    config, again = to_diffusers(from_diffusers(theirs().config, state), 8)
    assert config["num_attention_heads"] == 4
    assert set(state) - set(again) <= {"pos_embed.pos_embed"}
    assert all(torch.equal(again[k], state[k]) for k in again)
    net = DiT(4, 10, width=384, depth=2, heads=6)
    back = from_original(to_original(net, 8)).state_dict()
    assert all(torch.equal(back[k], v) for k, v in net.state_dict().items())


@pytest.mark.parametrize(("size", "heads"), [("s", 6), ("b", 12), ("l", 16), ("xl", 16)])
def test_the_published_sizes_have_the_heads_of_the_paper(size, heads):
    """Peebles and Xie 2022, arXiv:2212.09748, table 1. No file contains them, and a wrong number fits every weight."""
    node = composed("train", [f"backbone=dit_{size}_2", "backbone.depth=1"]).backbone
    with torch.device("meta"):
        net = build_backbone(node, {"channels": 4, "outputs": 2}, {"classes": 1000})
        back = from_original(to_original(net, 32))
    assert net.blocks[0].attention.heads == back.blocks[0].attention.heads == heads


@torch.no_grad()
def test_the_eps_of_a_config_is_used_in_every_second_norm():
    """diffusers' class uses it only there."""
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    other = DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=12, in_channels=4, out_channels=4, num_layers=1, sample_size=8,
        norm_eps=0.5,
    ).eval()  # fmt: skip
    net, (x, t, y) = from_diffusers(other.config, other.state_dict()), inputs()
    expected = other(x, timestep=t, class_labels=y).sample
    torch.testing.assert_close(net(x, t.float(), Condition(label=y)), expected, atol=1e-5, rtol=1e-5)
    config, _ = to_diffusers(net, 8)
    assert (config["norm_eps"], config["out_channels"], config["num_embeds_ada_norm"]) == (0.5, 4, 1000)


def test_the_exported_keys_are_those_of_the_original_code():
    fixture = json.loads((Path(__file__).parent / "fixtures" / "original_dit.json").read_text())
    state = to_original(DiT(4, 5, outputs=2, width=48, depth=2, heads=4), 8)
    assert {k: list(v.shape) for k, v in state.items()} == fixture["shapes"]
    assert torch.equal(state["pos_embed"].flatten()[::7], torch.tensor(fixture["places"]))


@torch.no_grad()
def test_the_original_code_has_the_same_output():
    fixture = json.loads((Path(__file__).parent / "fixtures" / "original_dit.json").read_text())
    state = {k: waves(k, tuple(shape)) for k, shape in fixture["shapes"].items()}
    net = from_original(state, heads=4).eval()
    time, label = torch.tensor(fixture["timestep"]).float(), torch.tensor(fixture["label"])
    answer = net(waves("x", (2, 4, 8, 8)), time, Condition(label=label))
    torch.testing.assert_close(answer.flatten()[::7], torch.tensor(fixture["answer"]), atol=1e-5, rtol=1e-5)


def test_keys_are_listed_by_name():
    other = theirs()
    state = other.state_dict()
    state["extra.weight"] = torch.zeros(1)
    del state["proj_out_2.bias"]
    state["proj_out_1.weight"] = torch.zeros(3, 3)
    with pytest.raises(ValueError, match="do not fit DiT") as error:
        from_diffusers(other.config, state)
    for fault in ("1 missing: proj_out_2.bias", r"proj_out_1.weight (3, 3) for (96, 48)", "1 unknown: extra.weight"):
        assert fault in str(error.value)


def test_shards_are_joined_and_variants_are_ignored(tmp_path):
    from dit.checkpoints.foreign import read_backbone

    other = theirs()
    other.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    wrong = {k: torch.zeros_like(v) for k, v in other.state_dict().items()}
    save_file(wrong, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    net = read_backbone(tmp_path)
    expected = from_diffusers(other.config, other.state_dict())
    for key, value in net.state_dict().items():
        assert torch.equal(value, expected.state_dict()[key])


@pytest.mark.parametrize(("config", "fault"), [
    ('{"_class_name": "DiTTransformer2DModel", "in_channels": 4}', "it has no 'num_attention_heads'"),
    ('{"_class_name"', "is not JSON"),
])  # fmt: skip
def test_a_broken_config_is_refused_in_one_line(tmp_path, config, fault):
    from dit.checkpoints.foreign import read_backbone

    save_file(theirs().state_dict(), tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=fault):
        read_backbone(tmp_path)


def test_a_training_checkpoint_of_the_original_code_is_read(tmp_path):
    from argparse import Namespace

    from dit.checkpoints.foreign import read_backbone

    net = DiT(4, 10, width=384, depth=1, heads=6)
    state = to_original(net, 8)
    torch.save({"model": {}, "ema": state, "args": Namespace(lr=1e-4)}, tmp_path / "0400000.pt")
    for key, value in read_backbone(tmp_path / "0400000.pt").state_dict().items():
        assert torch.equal(value, net.state_dict()[key])


@pytest.mark.parametrize(("change", "fault"), [
    (lambda s: s | {"transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias": torch.ones(48)}, "copies in other blocks differ"),
])  # fmt: skip
def test_embedders_that_differ_between_blocks_are_refused(change, fault):
    other = theirs()
    with pytest.raises(ValueError, match=fault):
        from_diffusers(other.config, change(dict(other.state_dict())))


@pytest.mark.parametrize(("call", "fault"), [
    (lambda: from_original({"a": torch.zeros(1)}), "not a DiT or SiT of the original code"),
    (lambda: from_original(to_original(DiT(4, 10, width=48, depth=1, heads=4), 8)), "give its number of heads"),
    (lambda: to_diffusers(DiT(4, 10, width=48, depth=1, heads=4), 8), "time_shift=1"),
    (lambda: to_diffusers(DiT(4, 10, width=48, depth=1, heads=4, time_shift=1.0, qk_norm=True), 8), "qk_norm=false"),
    (lambda: to_diffusers(DiT(4, 10, width=48, depth=1, heads=4, time_shift=1.0, mlp_ratio=2), 8), "mlp_ratio=4"),
    (lambda: to_diffusers(DiT(4, 10, width=48, depth=1, heads=4, time_shift=1.0, base=2), 8), "base=null"),
    (lambda: to_diffusers(DiT(4, 10, width=48, depth=1, heads=4, time_shift=1.0, registers=2), 8), "registers=0"),
    (lambda: to_diffusers(DiT(4, 10, width=48, depth=1, heads=4, time_shift=1.0, overlap=1), 8), "overlap=0"),
    (lambda: to_diffusers(DiT(4, 10, width=48, depth=1, heads=4, time_shift=1.0, position="rotary"), 8), "position=sinusoid"),
    (lambda: to_diffusers(DiT(4, 10, width=48, depth=1, heads=4, time_shift=1.0, norm=rms_norm), 8), "norm=layer_norm"),
    (lambda: to_diffusers(DiT(4, 10, width=48, depth=1, heads=4, time_shift=1.0, mlp=SwiGLU), 8), "mlp=Mlp"),
    (lambda: to_original(DiT(4, 10, width=48, depth=1, heads=4, time_shift=1.0), 8), "time_shift=0"),
])  # fmt: skip
def test_unsupported_imports_and_exports_are_refused(call, fault):
    with pytest.raises(ValueError, match=fault):
        call()
