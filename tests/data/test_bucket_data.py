"""Training in aspect-ratio buckets, from a folder to pictures of other sizes."""

import csv
import json

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image

from dit.data.bucket_data import BucketData, sizes_of
from dit.runs import load

from ..conftest import composed

SIZES = [(40, 40), (80, 40), (40, 80), (90, 41), (60, 40), (33, 99)]  # (width, height)
SMALL = [
    "experiment=folder", "data=buckets", "data.size=16", "data.module.side_multiple=4", "data.module.batch_multiple=4",
    "data.template=a *", "data.val_share=0.2", "batch_size=8", "backbone.width=32", "backbone.depth=1",
    "backbone.heads=2", "optimizer.lr=1e-3", "lr_schedule.warmup=1", "callbacks.ema.decay=0.9", "trainer.max_steps=8",
    "trainer.val_check_interval=8", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1", "recipe.steps=2",
    "budget_minutes=null", "callbacks.previews.every=8", "callbacks.checkpoints.every=4", "wandb.mode=disabled",
    "density=resolution", "grid=resolution", "data.size_conditions=true", "adapter=size_conditions",
]  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(60):
        folder = root / ("cat" if i % 2 else "dog")
        folder.mkdir(exist_ok=True)
        width, height = SIZES[i % len(SIZES)]
        Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return root


def words(pictures, folder):
    return [*SMALL, f"data.path={pictures}", f"run_dir={folder / 'run'}", f"cache_dir={folder / 'cache'}"]


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory):
    from dit.cli.train import train

    return train(composed("train", words(pictures, tmp_path_factory.mktemp("run"))))


def test_every_picture_is_in_one_bucket_of_its_shape(pictures, tmp_path):
    data = instantiate(composed("train", words(pictures, tmp_path)).data.module)
    assert sorted(row.name for bucket in data.buckets for row in bucket.rows) == sorted(r.name for r in data.train.rows)
    assert len(data.buckets) > 3
    for bucket in data.buckets:
        width, height = bucket.size
        assert bucket.images(np.array([0])).shape == (1, 3, height, width)
        for row, size in zip(bucket.rows, sizes_of(bucket).tolist(), strict=True):
            was_width, was_height = row.picture.size
            assert abs(np.log(width / height * was_height / was_width)) < 0.35
            assert size[:2] == [was_height, was_width]
            assert size[4:] == [height, width]
            assert 0 <= size[2] < was_height
            assert 0 <= size[3] < was_width


def test_training_reads_every_bucket_and_samples_any_size(run):
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert len(rows) == 8
    model = load(run, device="cpu")
    wide = model.sample("a cat", [0], size=(20, 12)).images
    assert wide.shape == (1, 3, 12, 20)
    assert json.loads((run / "summary.json").read_text())["steps"] == 8


def test_the_size_is_a_condition(run):
    model = load(run, device="cpu")
    embedding = model.pipeline.backbone.time.extra["width"].down
    torch.nn.init.normal_(embedding.weight)
    condition = model.pipeline.encode(["a cat"])
    sized = model.pipeline.sized(condition, (3, 12, 20))
    assert {name: float(value) for name, value in sized.extra.items()} == {
        "original_height": 12, "original_width": 20, "crop_top": 0, "crop_left": 0, "height": 12, "width": 20,
    }  # fmt: skip
    x, time = torch.randn(1, 3, 16, 16), torch.full((1,), 500.0)
    outputs = [model.pipeline.backbone(x, time, model.pipeline.sized(condition, (3, 16, w))) for w in (16, 512)]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-4


def test_a_source_of_one_size_is_refused():
    from dit.data.shapes import Shapes

    with pytest.raises(ValueError, match="buckets need pictures with sizes of their own, and Shapes has one size"):
        BucketData(Shapes("train", 8), Shapes("val", 8), batch_size=8, seed=0, size=32)
