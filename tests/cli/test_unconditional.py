"""Pictures without captions: an unconditional model is trained, previewed, sampled and scored."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dit.cli.evaluate import evaluate
from dit.cli.generate import generate
from dit.cli.train import train
from dit.data.source import selected

from ..conftest import composed

SMALL = [
    "debug=one_batch", "trainer.accelerator=cpu", "trainer.max_steps=2", "backbone.width=32", "backbone.depth=1",
    "backbone.heads=2", "batch_size=8", "data.size=16", "data.val_share=0.4", "recipe.steps=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(30):
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(root / f"{i}.png")
    return root


def trained(out: Path, folder: Path, *words: str) -> Path:
    selected.cache_clear()
    places = [f"data.path={folder}", f"run_dir={out / 'run'}", f"cache_dir={out / 'cache'}"]
    return train(composed("train", ["experiment=folder_unconditional", *SMALL, *places, *words]))


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("unconditional"), folder)


def test_previews_show_several_pictures(run):
    sheet = Image.open(next((run / "samples").glob("*.png")))
    assert sheet.width > 6 * 128
    assert sheet.height > 2 * 128


def test_generate_needs_and_accepts_no_prompt(run, tmp_path):
    folder = generate(composed("generate", [f"ckpt={run}", "seeds=[0,1]", "recipe.steps=2", f"out={tmp_path / 'out'}"]))
    assert len(list(folder.glob("*.png"))) == 2
    for words, fault in {"prompts=[a cat]": "'a cat': the model was trained on pictures without captions",
                         "guidance.scale=2": "guidance needs the null condition"}.items():  # fmt: skip
        with pytest.raises(ValueError, match=fault):
            generate(composed("generate", [f"ckpt={run}", words, f"out={tmp_path / 'none'}"]))


def test_evaluate_scores_it_without_guidance(run, tmp_path, capsys):
    words = [f"ckpt={run}", "sampler=euler", "steps=[1,2]", "n=8", "references=8", "batch_size=8", "metric=fd_shapes",
             f"out={tmp_path / 'out'}", f"cache_dir={tmp_path / 'cache'}", "wandb.mode=disabled"]  # fmt: skip
    folder = evaluate(composed("evaluate", words))
    assert len(list((folder / "cells").glob("*.json"))) >= 2
    assert capsys.readouterr().err.count("guidance.scale=2,4 left out") == 1
    with pytest.raises(ValueError, match="guidance needs the null condition"):
        evaluate(composed("evaluate", [*words, "guidance.scale=2"]))


def test_metrics_of_prompts_are_refused(run, tmp_path):
    words = [f"ckpt={run}", "sampler=euler", "steps=1", "n=8", "references=8", "metric=prompt_accuracy",
             f"out={tmp_path / 'out'}", f"cache_dir={tmp_path / 'cache'}", "wandb.mode=disabled"]  # fmt: skip
    with pytest.raises(ValueError, match="omit prompt accuracy"):
        evaluate(composed("evaluate", words))


@pytest.mark.parametrize("words", [
    ["backbone=pixart_tiny"], ["backbone=mmdit_tiny"], ["backbone=in_context_tiny"],
    ["backbone=dit_tiny", "text_encoder=classes"],
], ids=lambda words: words[0])  # fmt: skip
def test_every_kind_of_backbone_serves(words, folder, tmp_path):
    assert (trained(tmp_path, folder, *words) / "summary.json").is_file()


def test_guidance_is_refused_in_training_too(folder, tmp_path):
    with pytest.raises(
        ValueError, match=r"trained on pictures without captions .* use guidance\.scale=1 or guidance=auto"
    ):
        trained(tmp_path, folder, "caption_dropout=0.1", "guidance.scale=2")
