"""An autoencoder for one's own pictures: what it learns from, what it shows, and its use."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dit.encoders.autoencoder import PretrainedAutoencoder
from dit.training.reconstructions import Reconstructions

from ..conftest import composed


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Forty pictures without captions: smooth colours, so that a few steps are enough to learn something."""
    root, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(40):
        corners = Image.fromarray(draw.integers(0, 256, (2, 2, 3), dtype=np.uint8))
        corners.resize((32, 32), Image.Resampling.BILINEAR).save(root / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory):
    from dit.cli.train import train

    folder = tmp_path_factory.mktemp("autoencoder")
    words = [
        *("experiment=folder_autoencoder", f"data.path={pictures}", "data.val_share=0.3", "trainer.max_steps=4"),
        *("batch_size=4", "trainer.val_check_interval=2", "callbacks.reconstructions.every=2", "wandb.mode=disabled"),
        *("trainer.accelerator=cpu", "module.net.latent_channels=4", f"run_dir={folder / 'run'}", f"cache_dir={folder / 'cache'}"),
    ]  # fmt: skip
    return train(composed("train", words))


def test_it_trains_on_the_pictures_alone():
    cfg = composed("train", ["experiment=folder_autoencoder", "data.path=x"])
    assert "extra" not in cfg.data.module
    assert cfg.data.module.train._target_ == "dit.data.folder.Folder"


def test_originals_are_shown_above_reconstructions(run):
    files = sorted((run / "samples").glob("*.png"))
    assert [file.name for file in files] == ["step_0000002.png", "step_0000004.png"]
    image = np.asarray(Image.open(files[1])).astype(int)
    rows = [image[26 + 134 * place :][:128, 160:800] for place in range(4)]
    assert np.abs(rows[0] - rows[1]).mean() > 1  # after four steps a reconstruction is not the picture
    assert np.abs(rows[0] - rows[1]).mean() < np.abs(rows[0] - rows[2]).mean()  # but nearer than another picture


def test_the_summary_and_the_last_line_say_how_good_it_is(run):
    summary = json.loads((run / "summary.json").read_text())
    assert summary["psnr"] < 60
    assert summary["psnr_halved"] > summary["psnr"]  # smooth pictures, four steps


def test_the_result_is_an_autoencoder_path(run, pictures):
    loaded = PretrainedAutoencoder(str(run / "autoencoder"))
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    assert loaded.encode(images).shape == (2, 4, 8, 8)
    from hydra.utils import instantiate

    words = ["experiment=folder", f"data.path={pictures}", "autoencoder=kl", f"autoencoder.path={run / 'autoencoder'}"]
    assert instantiate(composed("train", words).autoencoder).fingerprint == loaded.fingerprint


def test_a_grid_with_a_short_last_row_is_filled(run, pictures, tmp_path):
    from types import SimpleNamespace

    from dit.data.folder import Folder
    from dit.data.module import PictureData
    from dit.training.autoencoder import AutoencoderModule

    val = Folder(str(pictures), 32, "val", captions="none", val_share=0.3)
    data = PictureData(val, val, 4, 0)
    trainer = SimpleNamespace(
        datamodule=data, default_root_dir=str(tmp_path), global_step=1, is_global_zero=True, loggers=[]
    )
    module = AutoencoderModule.__new__(AutoencoderModule)
    callback = Reconstructions(every=1, columns=5)
    callback.reconstructed = lambda module, images: images  # a perfect autoencoder
    callback.draw(trainer, module)
    image = np.asarray(Image.open(callback.file(trainer))).astype(int)
    rows = [image[6 + 20 + 134 * place : 134 * (place + 1) + 20, 156:] for place in range(4)]
    assert np.array_equal(rows[0], rows[1])
    assert np.array_equal(rows[2], rows[3])


@pytest.mark.parametrize("options", [{"every": 0}, {"every": 1, "columns": 0}, {"every": 1, "count": 1}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match="reconstructions"):
        Reconstructions(**options)
