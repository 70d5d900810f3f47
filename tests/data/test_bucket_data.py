"""Training in aspect-ratio buckets, from a folder to pictures of other sizes."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image

from dit.checkpoints.native import read_checkpoint
from dit.cli.evaluate import evaluate
from dit.cli.train import train
from dit.data.bucket_data import BucketData, sizes_of
from dit.diffusion.resolution import ResolutionDensity, ResolutionGrid
from dit.runs import load

from ..conftest import command, composed

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


def weights_of(run):
    return read_checkpoint(run / "checkpoints" / "step_0000008.ckpt")["state_dict"]


def killed(run, folder):
    """A copy of the run as if it had been killed after step 4."""
    shutil.copytree(run, folder / "run")
    for name in ("summary.json", "checkpoints/step_0000008.ckpt"):
        (folder / "run" / name).unlink()
    return [f"resume={folder / 'run'}"]


def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(run, pictures, tmp_path):
    resumed = weights_of(train(composed("train", [*words(pictures, tmp_path), *killed(run, tmp_path)])))
    assert all(torch.equal(weight, resumed[name]) for name, weight in weights_of(run).items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [["trainer.accumulate_grad_batches=2"], ["trainer=ddp", "trainer.devices=2"]], ids=["parts", "processes"]
)
def test_a_run_resumed_in_parts_or_by_two_processes_is_the_same_up_to_rounding(run, pictures, tmp_path, change):
    """A step has the same pictures, noise and times, and so the same gradient."""
    done = command("train.py", *words(pictures, tmp_path), *killed(run, tmp_path), *change)
    assert done.returncode == 0, done.stderr
    resumed = weights_of(tmp_path / "run")
    for name, weight in weights_of(run).items():
        torch.testing.assert_close(resumed[name], weight, rtol=1e-3, atol=2e-5, msg=name)


def test_training_previews_and_evaluation_shift_alike(pictures, tmp_path, monkeypatch):
    """By the cells of each batch, preview and cell: 16 x 16 pixels are no shift here, and 20 x 12 are sqrt(240 / 256)."""
    factors = {}
    for kind in (ResolutionDensity, ResolutionGrid):
        monkeypatch.setattr(kind, "at", recorded(kind.at, kind, factors))
    shift = ["density.shift.base=256", "grid.shift.base=256", "callbacks.previews.size=[[20,12]]"]
    run = train(composed("train", [*words(pictures, tmp_path), *shift]))
    trained, previewed = factors[ResolutionDensity], factors.pop(ResolutionGrid)
    evaluate(composed("evaluate", [
        f"ckpt={run}", "size=[[16,16],[20,12]]", "n=4", "steps=2", "sampler=euler", "guidance.scale=1", "references=8",
        "metric=fd_shapes", "wandb.mode=disabled", f"cache_dir={tmp_path}", f"out={tmp_path / 'out'}",
    ]))  # fmt: skip
    evaluated = factors[ResolutionGrid]
    assert len(trained) > 3
    assert {16 * 16, 20 * 12} <= previewed.keys() & evaluated.keys()
    for cells, factor in [*trained.items(), *previewed.items(), *evaluated.items()]:
        assert factor == math.sqrt(cells / 256)
    cards = json.loads((tmp_path / "out" / "results.json").read_text())["cards"]
    assert [card["protocol"]["size"] for card in cards] == [[16, 16], [20, 12]]
    assert cards[1]["protocol"]["reference"]["val"]["resize"].startswith("to 20x12, halved with a box filter")
    assert "diffusers' sizes of about 16x16" in cards[0]["subject"]["training_data"]["resize"]


def recorded(at, kind, factors):
    def call(self, cells):
        factors.setdefault(kind, {})[cells] = self.shift(cells)
        return at(self, cells)

    return call


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


def prepared(pictures, folder, *more):
    from dit.cli.prepare import prepare

    words = ["data=buckets", f"data.path={pictures}", "data.size=16", "data.module.side_multiple=4",
             "data.template=a *", "data.val_share=0.2", "autoencoder=identity", "device=cpu", "text_encoder=words_128",
             f"out={folder / 'store'}", f"cache_dir={folder / 'cache'}", *more]  # fmt: skip
    return prepare(composed("prepare", words))


def losses(run):
    return [row["train/loss"] for row in csv.DictReader((run / "metrics.csv").open())]


def test_a_run_from_prepared_buckets_equals_a_run_from_the_cache(pictures, run, tmp_path):
    from dit.cli.train import train

    store = prepared(pictures, tmp_path, "devices=1", "verify=true")
    parts = json.loads((store / "train" / "parts.json").read_text())
    assert parts["kind"] == "buckets"
    assert sorted(path.name for path in (store / "train").iterdir() if path.is_dir()) == sorted(parts["names"])
    own = [
        word for word in SMALL if not word.startswith(("data=", "data.template", "data.val_share", "data.module.side"))
    ]
    folder = train(composed("train", [*own, "data=prepared_buckets", "data.caption_words=32", f"data.path={store}",
                                      f"run_dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}"]))  # fmt: skip
    assert losses(folder) == losses(run)
    one, other = (
        torch.load(at / "checkpoints" / "step_0000008.ckpt", weights_only=True)["state_dict"] for at in (run, folder)
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_bucket_of_a_prepared_split_that_is_missing_is_named(pictures, tmp_path):
    from dit.data.prepared import Prepared

    store = prepared(pictures, tmp_path)
    names = json.loads((store / "train" / "parts.json").read_text())["names"]
    (store / "train" / names[1] / "manifest.json").unlink()
    with pytest.raises(ValueError, match=rf"train/{names[1]}/manifest\.json is missing"):
        Prepared(str(store), "train", 16)
    prepared(pictures, tmp_path)  # finishes it again
    with pytest.raises(ValueError, match=r"were data\.size=16"):
        Prepared(str(store), "train", 32)


def test_prepared_buckets_are_refused_where_one_size_is_needed(pictures, tmp_path):
    from dit.data.prepared import Prepared
    from dit.encoders.autoencoder import Identity

    store = str(prepared(pictures, tmp_path))
    train, val = (Prepared(store, split, 16) for split in ("train", "val"))
    with pytest.raises(ValueError, match="has no buckets: train with data=prepared"):
        BucketData(val, val, batch_size=8, seed=0, size=16)
    with pytest.raises(ValueError, match="train_limit=4: prepared buckets have no limit"):
        BucketData(train, val, batch_size=8, seed=0, size=16, train_limit=4)
    from dit.data.module import LatentData
    from dit.encoders.text import WordEncoder

    words = ["a", "cat", "dog"]
    with pytest.raises(ValueError, match="has pictures in buckets: train with data=prepared_buckets"):
        LatentData(train, val, batch_size=8, seed=0).encode_with(Identity(), WordEncoder(words, 128, 32), "cache")
