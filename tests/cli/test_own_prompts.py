"""The default evaluation of own pictures: words that training never contained, and a floor where pictures are few."""

import json

import numpy as np
import pytest
from PIL import Image

from dit.cli.evaluate import evaluate
from dit.cli.train import train

from ..conftest import composed

TRAIN, HELD_OUT = ["a red cat", "a blue dog", "a green cat"], ["a red cat", "a purple zebra"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trained on 24 pictures, with 12 held-out ones, half of them with words of their own."""
    root, draw = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    for split, captions, count in (("train", TRAIN, 24), ("validation", HELD_OUT, 12)):
        folder = root / "pictures" / split
        folder.mkdir(parents=True)
        rows = []
        for i in range(count):
            Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
            rows.append(json.dumps({"file_name": f"{i}.png", "text": captions[i % len(captions)]}))
        (folder / "metadata.jsonl").write_text("\n".join(rows))
    words = [
        *("experiment=folder", f"data.path={root / 'pictures'}", "data.size=16", "trainer.max_steps=2", "backbone.width=32"),
        *("backbone.depth=1", "wandb.mode=disabled", "trainer.accelerator=cpu", "recipe.steps=1", "batch_size=8"),
        *("callbacks.previews.every=2", f"run_dir={root / 'run'}", f"cache_dir={root / 'cache'}"),
    ]  # fmt: skip
    return train(composed("train", words)), root


def scored(run, *words):
    folder, root = run
    fixed = [
        "sampler=euler",
        "steps=[1,2]",
        "guidance.scale=1",
        "wandb.mode=disabled",
        "device=cpu",
        f"cache_dir={root}",
        "confirm=false",
    ]
    return evaluate(composed("evaluate", [f"ckpt={folder}", "n=8", "metric=fd_pixels", *fixed, *words]))


def test_prompts_with_new_words_are_named_with_a_file_of_training_captions(run, tmp_path, capsys):
    folder = scored(run, f"out={tmp_path / 'out'}")
    printed = capsys.readouterr().err
    assert "prompts have words that no training caption contains ('purple', 'zebra')" in printed
    file = folder / "training_prompts.txt"
    assert f"prompts={file}" in printed
    assert set(file.read_text().splitlines()) == set(TRAIN)
    assert "no training caption contains" in (folder / "report.html").read_text()
    again = scored(run, f"out={tmp_path / 'again'}", f"prompts={file}")
    assert "no training caption contains" not in capsys.readouterr().err
    assert not (again / "training_prompts.txt").exists()


def test_a_floor_is_kept_where_real_pictures_are_few(run, tmp_path, capsys):
    results = json.loads((scored(run, f"out={tmp_path / 'out'}") / "results.json").read_text())
    assert "none are left" not in capsys.readouterr().err
    assert results["cards"][0]["protocol"]["reference"]["val"]["count"] == 6
    assert "fd_pixels_6" in results["floors"]["real"]["scores"]


def test_the_previews_of_own_pictures_show_real_ones_too(run):
    sheet = Image.open(run[0] / "samples" / "step_0000002.png")
    assert sheet.width == 6 * 134 + 6
    assert sheet.height > 2 * 134  # three training captions and two held-out ones, each beside a real picture
