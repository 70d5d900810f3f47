"""A run keeps its words and classes when it is resumed with other captions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from dit.cli.train import train
from dit.data.source import selected

from ..conftest import composed

SMALL = [
    "experiment=folder", "debug=one_batch", "trainer.accelerator=cpu", "backbone.width=32", "backbone.depth=1",
    "backbone.heads=2", "batch_size=8", "data.size=16", "data.val_share=0.3", "recipe.steps=2",
]  # fmt: skip


def paint(folder: Path, count: int, seed: int, caption: str) -> None:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{seed}_{i}.png")
        (folder / f"{seed}_{i}.txt").write_text(caption)


def trained(root: Path, name: str, *words: str) -> Path:
    selected.cache_clear()
    places = [f"data.path={root / 'pictures'}", f"run_dir={root / name}", f"cache_dir={root / 'cache'}"]
    return train(composed("train", [*SMALL, *places, *words]))


def encoder_of(run: Path):
    return instantiate(OmegaConf.load(run / "config.yaml").text_encoder)


@pytest.mark.slow
def test_the_words_of_a_run_that_is_gone_on_with_keep_their_vectors(tmp_path):
    for seed, caption in enumerate(("red cat", "blue dog")):
        paint(tmp_path / "pictures", 10, seed, caption)
    before = encoder_of(trained(tmp_path, "run", "trainer.max_steps=1"))
    (tmp_path / "run" / "summary.json").unlink()
    paint(tmp_path / "pictures", 1, 9, "an amber cat")
    trained(tmp_path, "other", f"init={tmp_path / 'run'}", "trainer.max_steps=1")
    trained(tmp_path, "run", "resume=auto", "trainer.max_steps=2")
    for run in ("run", "other"):
        after = encoder_of(tmp_path / run)
        assert list(after.indices) == [*before.indices, "amber", "an"]
        assert torch.equal(after.table[: len(before.table)], before.table)


def test_new_classes_are_refused_by_name(tmp_path):
    words = ["backbone=dit_tiny", "text_encoder=classes", "trainer.max_steps=1"]
    for seed, caption in enumerate(("cat", "dog")):
        paint(tmp_path / "pictures", 10, seed, caption)
    run = trained(tmp_path, "run", *words)
    (run / "summary.json").unlink()
    paint(tmp_path / "pictures", 4, 9, "ant")
    for start in (["resume=auto"], [f"init={run}"]):
        with pytest.raises(ValueError, match="has 2 classes, and not 'ant'"):
            trained(tmp_path, "run" if start == ["resume=auto"] else "other", *words, *start)
