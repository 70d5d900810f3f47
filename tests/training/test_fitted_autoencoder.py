"""An autoencoder fitted to pictures: cached by its inputs, and never incomplete."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from dit.data.shapes import Shapes
from dit.encoders.autoencoder import PretrainedAutoencoder
from dit.encoders.autoencoder_weights import load_network
from dit.training import fitted_autoencoder as module
from dit.training.fitted_autoencoder import Fit, fitted_autoencoder, fitted_folder, module_of
from dit.types import from_pixels

TRAIN, VAL, QUICK = Shapes("train", 64), Shapes("val", 16), Fit(steps=2, batch_size=4)


def fitted(root, train=TRAIN, fit=QUICK, seconds=None, seed=0):
    return fitted_autoencoder(train, VAL, fit, seconds, seed, root, "cpu")


def test_it_is_fitted_once(tmp_path, capsys, monkeypatch):
    folder = fitted(tmp_path)
    assert " dB on 16 pictures" in capsys.readouterr().err
    monkeypatch.setattr(module, "fit_now", None)
    assert fitted(tmp_path) == folder
    loaded = PretrainedAutoencoder(str(folder))
    assert (loaded.channels, loaded.factor) == (4, 4)
    output = json.loads((folder / module.SUMMARY).read_text())
    images = from_pixels(torch.from_numpy(VAL.images(np.arange(16))))
    mse = (loaded.decode(loaded.encode(images)).clamp(-1, 1) - images).square().mean()
    assert output["psnr"] == pytest.approx(10 * torch.log10(4 / mse).item(), abs=0.05)


@pytest.mark.parametrize(
    "other",
    [
        {"train": Shapes("train", 63)},
        {"fit": replace(QUICK, channels=8)},
        {"fit": replace(QUICK, steps=3)},
        {"seed": 1},
        {"fit": replace(QUICK, steps=None), "seconds": 30.0},
    ],
    ids=["pictures", "channels", "steps", "seed", "budget"],
)
def test_every_input_changes_the_cache_folder(tmp_path, other):
    given = {"train": TRAIN, "fit": QUICK, "seconds": None, "seed": 0}
    places = [fitted_folder(tmp_path, **given), fitted_folder(tmp_path, **(given | other))]
    assert places[0] != places[1]


def test_a_fit_that_is_stopped_leaves_nothing_behind(tmp_path, monkeypatch):
    def stopped(*args):
        (args[5] / "autoencoder").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "fit_now", stopped)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path)
    assert not list((tmp_path / "autoencoders").iterdir())


def test_a_budget_is_turned_into_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "seconds_of_step", lambda *args: 0.5)
    folder = fitted(tmp_path, fit=replace(QUICK, steps=None), seconds=1.6)
    assert json.loads((folder / module.SUMMARY).read_text())["steps"] == 3


def test_it_begins_with_the_shipped_one():
    """With the same number of channels it is the shipped one; with more, all layers but those next to the latents are."""
    shipped = load_network("shapes_autoencoder").state_dict()
    same = module_of(Fit(), 0).net.state_dict()
    assert all(torch.equal(same[name], value) for name, value in shipped.items())
    wider = module_of(Fit(channels=8), 0).net.state_dict()
    new = {name.rpartition(".")[0] for name, value in shipped.items() if wider[name].shape != value.shape}
    assert new == {"encoder.conv_out", "quant_conv", "post_quant_conv", "decoder.conv_in"}
    kept = [name for name, value in shipped.items() if wider[name].shape == value.shape]
    assert len(kept) > 50
    assert all(torch.equal(wider[name], shipped[name]) for name in kept)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"channels": 0}, {"lr": -1.0}, {"share": 0.0}, {"share": 1.0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="fit_autoencoder"):
        Fit(**wrong)
