"""FLUX.1 at the command line: fine-tuned from a folder of diffusers, with an adapter, and exported as a pipeline."""

import numpy as np
import pytest
import torch
from PIL import Image

from dit.backbones.flux import Flux
from dit.checkpoints.foreign import write_folder
from dit.checkpoints.read_pipeline import TEXT_LENGTH
from dit.cli.export import export
from dit.cli.train import train
from dit.diffusion.noise import Noise
from dit.runs import load, load_run

from ..conftest import composed
from ..encoders.folders import save_flux
from ..encoders.small import saved

PROMPTS = ["a star", "a circle"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder of pictures, one of a transformer, and those of encoders."""
    root, draw = tmp_path_factory.mktemp("flux"), np.random.default_rng(0)
    for name in ("star", "circle"):
        (root / "pictures" / name).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)).save(root / "pictures" / name / f"{i}.png")
    net = Flux(16, 48, 16, width=48, depth=2, heads=4, guidance_scale=3.5, reads_padding=True)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(p.numel()))
    write_folder(net, root / "transformer", 16)
    saved(root, "kl_16")
    save_flux(root / "text")
    return root


def trained(base, run, *words):
    settings = [
        "experiment=t2i_flux", "debug=tiny", "trainer.accelerator=cpu", f"data.path={base / 'pictures'}",
        "data.template='a *'", f"autoencoder.path={base / 'kl_16'}", f"text_encoder.name={base / 'text'}",
        "text_encoder.length=12", "text_encoder.dtype=float32", f"init={base / 'transformer'}", f"run_dir={run}",
        f"cache_dir={base / 'cache'}", "optimizer.lr=0.01", "lr_schedule.warmup=0", "callbacks.ema.decay=0.5",
    ]  # fmt: skip
    return train(composed("train", [*settings, *words]))


@pytest.mark.parametrize("words", [[], ["adapter=lora", "adapter.rank=2"]], ids=["all weights", "adapter"])
def test_a_fine_tuned_model_is_exported_as_a_pipeline_that_samples_its_pictures(words, base, tmp_path, monkeypatch):
    from diffusers import FluxPipeline

    run = trained(base, tmp_path / "run", *words)
    folder = export(composed("export", [f"ckpt={run}", f"out={tmp_path / 'out'}"]))
    ours = load_run(run, device="cpu")
    assert ours.pipeline.backbone.guidance_scale == 1.0  # of training; samples have that of the recipe
    made = ours.sample(PROMPTS, [3, 4], steps=2, guidance=3.5).images
    pipe = FluxPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    shape = ours.pipeline.latent_shape
    expected = pipe(
        PROMPTS, height=32, width=32, num_inference_steps=2, guidance_scale=3.5, max_sequence_length=12,
        latents=FluxPipeline._pack_latents(Noise([3, 4], shape).start(), 2, *shape), output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close((made / 2 + 0.5).clamp(0, 1), expected, atol=1e-5, rtol=0)
    before = load_run(trained(base, tmp_path / "before", *words, "optimizer.lr=1e-12"), device="cpu")
    assert (before.sample(PROMPTS, [3, 4], steps=2, guidance=3.5).images - made).abs().max() > 1e-3
    monkeypatch.setitem(TEXT_LENGTH, "FluxPipeline", 12)
    again = load(folder, device="cpu").sample(PROMPTS, [3, 4], size=(32, 32), steps=2, guidance=3.5).images
    torch.testing.assert_close(again, made, atol=1e-5, rtol=0)
