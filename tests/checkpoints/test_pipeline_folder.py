"""Export of pipelines: diffusers loads the folder and samples the same pictures from the same noise."""

import json
from functools import partial

import numpy as np
import pytest
import torch

from dit.backbones.dit import DiT
from dit.backbones.flux import Flux
from dit.backbones.mmdit import MMDiT
from dit.backbones.pixart import PixArt
from dit.checkpoints.foreign import read_backbone
from dit.checkpoints.pipeline_folder import write_pipeline
from dit.checkpoints.pipeline_texts import text_parts
from dit.checkpoints.read_pipeline import TEXT_LENGTH
from dit.diffusion.guidance import ClassifierFree
from dit.diffusion.noise import Noise
from dit.diffusion.path import Cosine, DiscreteBetas, Linear, cosine_betas, linear_betas, scaled_linear_betas
from dit.diffusion.path import zero_terminal_snr as zero_snr
from dit.diffusion.prediction import X0, Eps, Flow, LearnedRange, V, timestep
from dit.diffusion.sampler.ddim import ddim
from dit.diffusion.sampler.multistep import dpmpp, midpoint
from dit.diffusion.time import Leading, Linspace, ShiftedGrid, Trailing, UniformTime
from dit.encoders.autoencoder import Identity, PretrainedAutoencoder
from dit.encoders.classes import ClassEncoder
from dit.encoders.huggingface import T5Text
from dit.encoders.joined import flux, stable_diffusion_3
from dit.encoders.text import WordEncoder
from dit.pipeline import Pipeline, Recipe
from dit.runs import load

from ..encoders.folders import save_flux, save_sd3, save_t5
from ..encoders.small import saved

SEEDS, SIDE, STEPS, SCALE = [3, 4], 8, 10, 4.0
CLASSES = ClassEncoder([f"class {i}" for i in range(1000)])
PROMPTS = ["a red star", "large blue circle on the black"]
INDEX = {"c_noise": timestep}


def woken(net):
    """A network with random values in its zero-initialised parts."""
    draw = torch.Generator().manual_seed(1)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.05, generator=draw)
    return net.eval()


def dit(outputs=1, classes=1000):
    return woken(DiT(4, classes, outputs=outputs, width=48, depth=2, heads=4, time_shift=1.0))


def autoencoder(folder, kind="kl_4", **options):
    return PretrainedAutoencoder(str(saved(folder, kind)), **options)


def written(pipeline, grid, folder):
    p = pipeline
    return write_pipeline(
        folder, p.backbone, p.path, p.prediction, grid, p.text_encoder, p.autoencoder, p.latent_shape[-1]
    )


def loaded(kind, folder, **parts):
    import diffusers

    pipe = getattr(diffusers, kind).from_pretrained(folder, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def assert_same(images, expected):
    assert expected.std() > 0.01
    assert (expected[0] - expected[1]).abs().max() > 0.01
    torch.testing.assert_close((images / 2 + 0.5).clamp(0, 1), expected, atol=1e-5, rtol=0)


def assert_read_back(folder, prompts, expected):
    """`load` of the folder samples the same images by the scheduler's own sampler and grid."""
    run = load(folder, device="cpu")
    images = run.sample(prompts, SEEDS, steps=STEPS, guidance=SCALE).images
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("betas", "prediction", "grid"), [
    (linear_betas(1000), LearnedRange(Eps(**INDEX)), Leading()),
    (scaled_linear_betas(1000), V(**INDEX), Leading(offset=1)),
    (cosine_betas(1000), X0(**INDEX), Trailing()),
    (zero_snr(scaled_linear_betas(1000)), V(**INDEX), Trailing()),
], ids=["linear eps", "scaled v", "cosine x0", "zero snr v"])  # fmt: skip
@pytest.mark.parametrize(
    "statistics", [{}, {"mean": [0.1, -0.2, 0.3, 0.0], "std": [2.0, 0.5, 1.0, 3.0]}], ids=["", "channels"]
)
def test_a_chain_of_betas_in_dit_pipeline(betas, prediction, grid, statistics, tmp_path, monkeypatch):
    vae = autoencoder(tmp_path, **statistics)
    ours = Pipeline(dit(prediction.outputs), DiscreteBetas(betas), prediction, CLASSES, vae, (4, SIDE, SIDE))
    (note,) = written(ours, grid, tmp_path / "out")
    assert f"sampler=ddim grid={'trailing' if isinstance(grid, Trailing) else 'leading'}" in note
    monkeypatch.setattr(
        "diffusers.pipelines.dit.pipeline_dit.randn_tensor", lambda **_: Noise(SEEDS, (4, SIDE, SIDE)).start()
    )
    theirs = loaded("DiTPipeline", tmp_path / "out")
    images = ours(["class 7", "class 207"], SEEDS, Recipe(ddim, grid, STEPS, ClassifierFree(SCALE))).images
    labels = theirs.get_label_ids(["class 7", "class 207"])
    assert_same(images, theirs(labels, guidance_scale=SCALE, num_inference_steps=STEPS, output_type="pt").images)
    assert_read_back(tmp_path / "out", ["class 7", "class 207"], images)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    raw = theirs.vae.encode(images).latent_dist.mode() * theirs.vae.config.scaling_factor
    torch.testing.assert_close(raw, vae.encode(images), atol=1e-5, rtol=1e-5)


def test_pixart_with_its_text_encoder(tmp_path, monkeypatch):
    text = T5Text(str(save_t5(tmp_path / "text")), length=12)
    net = woken(PixArt(4, 32, outputs=2, width=48, depth=2, heads=4, base=4))
    path, vae = DiscreteBetas(linear_betas(1000)), autoencoder(tmp_path)
    ours = Pipeline(net, path, LearnedRange(Eps(**INDEX)), text, vae, (4, SIDE, SIDE))
    notes = written(ours, Leading(), tmp_path / "out")
    assert "sampler=dpmpp_2m grid=linspace" in notes[0]
    assert notes[1:] == ["call it with max_sequence_length=12"]
    expected = loaded("PixArtAlphaPipeline", tmp_path / "out")(
        PROMPTS, guidance_scale=SCALE, num_inference_steps=STEPS, output_type="pt", height=16, width=16,
        latents=Noise(SEEDS, (4, SIDE, SIDE)).start(), use_resolution_binning=False, clean_caption=False,
        max_sequence_length=12,
    ).images  # fmt: skip
    images = ours(
        PROMPTS, SEEDS, Recipe(partial(dpmpp, rule=midpoint), Linspace(), STEPS, ClassifierFree(SCALE))
    ).images
    assert_same(images, expected)
    monkeypatch.setitem(TEXT_LENGTH, "PixArtAlphaPipeline", 12)
    assert_read_back(tmp_path / "out", PROMPTS, images)


def test_stable_diffusion_3_with_its_text_encoders(tmp_path, monkeypatch):
    text = stable_diffusion_3(str(save_sd3(tmp_path / "text")), length=12)
    vae, grid = autoencoder(tmp_path, "kl_16"), ShiftedGrid(UniformTime(), 3.0)
    net = woken(
        MMDiT(16, 48, 36, width=48, depth=2, heads=4, reads_padding=True, base=4, position="cropped", largest=6)
    )
    ours = Pipeline(net, Linear(), Flow(), text, vae, (16, SIDE, SIDE))
    notes = written(ours, grid, tmp_path / "out")
    assert "sampler=euler" in notes[0]
    expected = loaded("StableDiffusion3Pipeline", tmp_path / "out")(
        PROMPTS, guidance_scale=SCALE, num_inference_steps=STEPS, output_type="pt", max_sequence_length=12,
        latents=Noise(SEEDS, (16, SIDE, SIDE)).start(), sigmas=list(np.linspace(1, 0, STEPS + 1)[:-1]),
    ).images  # fmt: skip
    images = ours(PROMPTS, SEEDS, Recipe(ddim, grid, STEPS, ClassifierFree(SCALE))).images
    assert_same(images, expected)
    monkeypatch.setitem(TEXT_LENGTH, "StableDiffusion3Pipeline", 12)
    assert_read_back(tmp_path / "out", PROMPTS, images)


def test_text_encoders_of_dit_are_left_out(tmp_path):
    net = woken(PixArt(4, 64, outputs=2, width=48, depth=2, heads=4, base=4))
    words = WordEncoder(["red", "star"], length=4, width=64)
    path, prediction = DiscreteBetas(linear_betas(1000)), LearnedRange(Eps(**INDEX))
    ours = Pipeline(net, path, prediction, words, autoencoder(tmp_path), (4, SIDE, SIDE))
    notes = written(ours, Leading(), tmp_path / "out")
    assert "from_pretrained(FOLDER, tokenizer=None, text_encoder=None)" in notes[1]
    assert loaded("PixArtAlphaPipeline", tmp_path / "out", tokenizer=None, text_encoder=None).text_encoder is None


@pytest.mark.parametrize(("path", "prediction", "latents", "why"), [
    (Linear(), Flow(), None, "a chain of 1000 betas"),
    (Cosine(), Eps(**INDEX), None, "a chain of 1000 betas"),
    (DiscreteBetas(linear_betas(100)), Eps(**INDEX), None, "a chain of 1000 betas"),
    (DiscreteBetas(linear_betas(1000)), Flow(**INDEX), None, "prediction of eps, v or x0 only"),
    (DiscreteBetas(linear_betas(1000)), Eps(), None, "prediction.c_noise=timestep"),
    (DiscreteBetas(linear_betas(1000)), Eps(**INDEX), Identity(), "not an AutoencoderKL"),
])  # fmt: skip
def test_for_an_unsupported_run_only_the_transformer_is_written(path, prediction, latents, why, tmp_path):
    vae = latents or autoencoder(tmp_path)
    ours = Pipeline(dit(), path, prediction, CLASSES, vae, (4, SIDE, SIDE))
    (note,) = written(ours, UniformTime(), tmp_path / "out")
    assert note.startswith("only the transformer is written")
    assert why in note
    assert f"{type(path).__name__} and the prediction {type(prediction).__name__}" in note
    assert isinstance(read_backbone(tmp_path / "out"), DiT)
    (tmp_path / "out" / "model_index.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="contains a pipeline, and this run has none"):
        written(ours, UniformTime(), tmp_path / "out")


@pytest.mark.parametrize(("path", "prediction"), [
    (DiscreteBetas(linear_betas(1000)), Flow()), (Linear(), V()), (Linear(), Flow(c_noise=timestep)),
])  # fmt: skip
def test_stable_diffusion_3_supports_only_a_linear_flow(path, prediction, tmp_path):
    net = MMDiT(4, 48, 36, width=48, depth=1, heads=4, reads_padding=True, base=4, position="cropped", largest=6)
    ours = Pipeline(net, path, prediction, CLASSES, autoencoder(tmp_path), (4, SIDE, SIDE))
    (note,) = written(ours, UniformTime(), tmp_path / "out")
    assert "StableDiffusion3Pipeline works on path=linear with prediction=flow only" in note
    assert not (tmp_path / "out" / "model_index.json").exists()


def pixart_text(folder, **options):
    return T5Text(str(save_t5(folder)), length=12, **options)


def sd3_text(folder, **options):
    return stable_diffusion_3(str(save_sd3(folder)), length=12, **options)


def flux_text(folder, **options):
    return flux(str(save_flux(folder)), length=12, **options)


def sd3_of_another_layer(folder):
    joined = sd3_text(folder)
    joined.parts[0].parts[1].hidden_index -= 1
    return joined


@pytest.mark.parametrize(("make", "net", "reads"), [
    (pixart_text, PixArt, True), (partial(pixart_text, keep_padding=True), PixArt, False),
    (partial(pixart_text, zero_null=True), PixArt, False), (sd3_text, PixArt, False),
    (sd3_text, MMDiT, True), (partial(sd3_text, zero_null=True), MMDiT, False), (sd3_of_another_layer, MMDiT, False),
    (pixart_text, MMDiT, False), (flux_text, Flux, True), (partial(flux_text, zero_null=True), Flux, False),
    (sd3_text, Flux, False), (flux_text, MMDiT, False),
])  # fmt: skip
def test_a_text_encoder_is_exported_only_if_the_pipeline_encodes_texts_the_same_way(make, net, reads, tmp_path):
    with torch.device("meta"):
        backbone = (
            net(4, 32, width=48, depth=1, heads=4) if net is PixArt else net(4, 48, 36, width=48, depth=1, heads=4)
        )
    parts, notes = text_parts(backbone, make(tmp_path / "text"))
    assert len(parts) == (0 if not reads else {PixArt: 2, Flux: 4, MMDiT: 6}[net])
    assert ("give embeddings" in notes[0]) != reads


def test_another_number_of_classes_is_reported(tmp_path):
    ten = ClassEncoder([f"class {i}" for i in range(10)])
    path = DiscreteBetas(linear_betas(1000))
    ours = Pipeline(dit(classes=10), path, Eps(**INDEX), ten, autoencoder(tmp_path), (4, SIDE, SIDE))
    notes = written(ours, Leading(), tmp_path / "out")
    assert "1000 classes, and this model 10: call it only with guidance_scale=1" in notes[1]
    theirs = loaded("DiTPipeline", tmp_path / "out")
    assert theirs([3], guidance_scale=1.0, num_inference_steps=2, output_type="pt").images.shape == (1, 3, 16, 16)


@pytest.mark.parametrize(("file", "change", "fault"), [
    ("model_index.json", {"_class_name": "SanaPipeline"}, "is a SanaPipeline: dit reads DiTPipeline"),
    ("scheduler/scheduler_config.json", {"_class_name": "PNDMScheduler"}, "no path for a PNDMScheduler"),
    ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "prediction_type=flow is not one of epsilon"),
], ids=["pipeline", "scheduler", "prediction"])  # fmt: skip
def test_a_pipeline_that_cannot_be_read_is_refused_in_one_line(file, change, fault, tmp_path):
    ours = Pipeline(
        dit(), DiscreteBetas(linear_betas(1000)), Eps(**INDEX), CLASSES, autoencoder(tmp_path), (4, SIDE, SIDE)
    )
    written(ours, Leading(), tmp_path / "out")
    path = tmp_path / "out" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=fault):
        load(tmp_path / "out", device="cpu")
