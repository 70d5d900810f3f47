"""What differs on a GPU, from training to scores: moves between devices, bf16, encoders, metrics, processes over nccl."""

import json

import numpy as np
import pytest
import torch

from dit.cli.evaluate import evaluate
from dit.cli.train import train
from dit.data.shapes import Shapes
from dit.diffusion.guidance import ClassifierFree
from dit.diffusion.sampler.ddim import ddim
from dit.diffusion.time import UniformTime
from dit.encoders.autoencoder import PretrainedAutoencoder
from dit.pipeline import Recipe
from dit.runs import load_run
from dit.scoring.prompts import EncodedPrompts
from dit.training.loggers import MetricsCsv
from dit.types import from_pixels

from .conftest import TINY, composed, train_tiny
from .metrics.every import Pixels, random_pictures

pytestmark = pytest.mark.gpu
CPU = "trainer.accelerator=cpu"
ON_GPU = [word for word in TINY if word != CPU]
PROMPTS = Shapes("val", 100).captions


def train_on_gpu(folder, *overrides):
    places = [f"run_dir={folder}", f"cache_dir={folder.parent / 'cache'}", "trainer.accelerator=gpu"]
    return train(composed("train", [*ON_GPU, *places, *overrides]))


def losses(run):
    csv = MetricsCsv(run)
    csv.resume_at(100)
    return [row["train/loss"] for _, row in sorted(csv.rows.items()) if "train/loss" in row]


def test_training_has_the_losses_of_the_cpu(tmp_path):
    """The draws are the CPU's, and so is the order; the products alone are rounded otherwise."""
    on_cpu, on_gpu = losses(train_tiny(tmp_path / "cpu")), losses(train_on_gpu(tmp_path / "gpu"))
    assert len(on_cpu) == 6
    assert on_gpu == pytest.approx(on_cpu, rel=1e-3)


def test_one_process_over_nccl_trains_as_one_without(tmp_path):
    alone = losses(train_on_gpu(tmp_path / "alone"))
    joined = losses(train_on_gpu(tmp_path / "nccl", "trainer.strategy=ddp"))
    assert joined == pytest.approx(alone, rel=1e-5)


def test_a_mixed_precision_run_trains_is_scored_and_resumes(tmp_path):
    run = train_on_gpu(tmp_path / "run", "trainer.precision=bf16-mixed", "compile=true")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 6
    assert 0 <= summary["prompt_accuracy"] <= 1
    more = ["trainer.max_steps=8", f"resume={run}", "trainer.precision=bf16-mixed", "compile=true"]
    train_on_gpu(run, *more)
    assert json.loads((run / "summary.json").read_text())["steps"] == 8


@pytest.mark.parametrize("n", [1, 64, 100])
def test_prompts_that_are_encoded_on_the_gpu_arrive_whole(tiny_run, n):
    """A copy to the CPU that is not waited for is read before it arrives."""
    pipeline = load_run(tiny_run, device="cuda").pipeline
    encode = pipeline.text_encoder.encode
    pipeline.text_encoder.encode = lambda prompts: encode(prompts).to("cuda")
    for _ in range(20):
        got, expected = EncodedPrompts(pipeline, PROMPTS[:n])[torch.arange(n)], encode(PROMPTS[:n])
        assert torch.equal(got.pooled, expected.pooled)


RECIPE = Recipe(ddim, UniformTime(), 8, ClassifierFree(2.0))


def test_pictures_are_the_cpus_in_float32_and_near_them_in_bf16(tiny_run):
    on_cpu = load_run(tiny_run, device="cpu").pipeline(PROMPTS[:8], range(8), RECIPE).images
    pipeline = load_run(tiny_run, device="cuda").pipeline
    for precision, worst in (("32", 1e-3), ("tf32", 2e-2), ("bf16", 0.2)):
        images = pipeline.sample_in(precision)(PROMPTS[:8], range(8), RECIPE).images
        assert images.device.type == "cpu"
        assert (images - on_cpu).abs().max() < worst, precision
    assert pipeline.sample_in("auto").precision == ("bf16" if torch.cuda.is_bf16_supported() else "32")


def test_a_compiled_network_makes_the_same_pictures(tiny_run):
    pipeline = load_run(tiny_run, device="cuda").pipeline
    plain = pipeline.sample_in("32")(PROMPTS[:4], range(4), RECIPE).images
    compiled = pipeline.sample_in("32", compile=True)(PROMPTS[:4], range(4), RECIPE).images
    torch.testing.assert_close(compiled, plain, atol=1e-3, rtol=0)


def test_the_shipped_autoencoder_encodes_and_decodes_as_on_the_cpu():
    images = from_pixels(torch.from_numpy(Shapes("val", 4).images(np.arange(4))))
    coder = PretrainedAutoencoder("shapes_autoencoder")
    latents = coder.encode(images)
    pictures = coder.decode(latents)
    with torch.backends.cudnn.flags(allow_tf32=False):
        coder.to("cuda")
        torch.testing.assert_close(coder.encode(images.cuda()).cpu(), latents, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(coder.decode(latents.cuda()).cpu(), pictures, atol=1e-3, rtol=1e-3)


def test_metrics_on_the_gpu_give_the_scores_of_the_cpu():
    from dit.metrics.frechet import FrechetDistance

    scores = []
    for device in ("cpu", "cuda"):
        metric = FrechetDistance("fd", Pixels()).to(device)
        metric.update(random_pictures(64, seed=1), real=True)
        metric.update(random_pictures(64, seed=2))
        scores.append(metric.compute()["fd_64"])
    assert scores[1] == pytest.approx(scores[0], rel=1e-6)


def test_evaluation_on_the_gpu_has_the_precision_in_its_cards(tiny_run, tmp_path):
    words = [f"ckpt={tiny_run}", f"out={tmp_path / 'out'}", f"cache_dir={tmp_path}", "n=8", "references=32", "steps=2"]
    words += ["sampler=euler", "guidance.scale=1", "wandb.mode=disabled", "precision=bf16"]
    folder = evaluate(composed("evaluate", words))
    cards = json.loads((folder / "results.json").read_text())
    assert '"bf16"' in json.dumps(cards)
