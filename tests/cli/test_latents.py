"""Measuring an autoencoder on a data set, from the command line."""

import json

import numpy as np
import pytest
import torch

from dit.cli.latents import latents
from dit.data.shapes import Shapes
from dit.encoders.autoencoder import PretrainedAutoencoder
from dit.types import from_pixels

from ..conftest import command, composed, only_line_of
from ..encoders.small import saved, small


def test_the_statistics_are_those_of_the_data_and_their_file_is_printed_last(tmp_path, capsys):
    folder, out = saved(tmp_path, "kl_4"), tmp_path / "new" / "latents.json"
    words = ["autoencoder=kl", f"autoencoder.path={folder}", "split=val", "data.module.val.count=40", "n=100"]
    file = latents(composed("latents", [*words, "batch_size=16", "device=cpu", f"out={out}"]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(file) == str(out)
    output = json.loads(out.read_text())
    images = from_pixels(torch.from_numpy(Shapes("val", 40).images(np.arange(40))))
    raw = small("kl_4").encode(images).latent_dist.mode()
    assert output["pictures"] == 40
    assert output["mean"] == pytest.approx(raw.mean((0, 2, 3)).tolist(), abs=1e-5)
    assert output["std"] == pytest.approx(raw.std((0, 2, 3), correction=0).tolist(), abs=1e-5)
    assert output["autoencoder"] == PretrainedAutoencoder(str(folder)).fingerprint
    for row, (mean, std) in enumerate(zip(output["mean"], output["std"], strict=True)):
        assert lines[1 + row].split()[:2] == [str(row), f"{mean:.4f}"]
        assert f"{std:.4f}" in lines[1 + row]
    assert any(f"PSNR of {output['psnr']:.2f}" in line for line in lines)


def test_the_overrides_it_prints_are_taken(tmp_path, capsys):
    from hydra.utils import instantiate

    from dit.cli.front import first_fault

    small_set = ["data.module.val.count=40", "split=val", "device=cpu"]
    latents(composed("latents", [*small_set, f"out={tmp_path / 'latents.json'}"]))
    output = json.loads((tmp_path / "latents.json").read_text())
    printed = [line.split(": ", 1)[1].split() for line in capsys.readouterr().out.splitlines() if "to use" in line]
    assert len(printed) == 2
    for words in printed:
        assert first_fault("train", words) is None
        assert first_fault("train", ["autoencoder=flux", *words]) is None
        assert instantiate(composed("train", words).autoencoder).shift.mean() == pytest.approx(
            output["shift"], abs=1e-4
        )


def test_the_shipped_autoencoder_is_as_its_config_says(tmp_path):
    """Its scale and shift were taken from held-out pictures when it was trained; over shapes and pairs together."""
    latents(composed("latents", ["split=val", "n=300", "device=cpu", f"out={tmp_path / 'latents.json'}"]))
    output = json.loads((tmp_path / "latents.json").read_text())
    shipped = PretrainedAutoencoder("shapes_autoencoder")
    assert output["shift"] == pytest.approx(shipped.shift.mean().item(), abs=5 * output["shift_se"])
    assert output["scale"] == pytest.approx(shipped.scale.mean().item(), abs=5 * output["scale_se"])
    assert output["psnr"] > 25


def test_seeds_choose_other_pictures(tmp_path, capsys):
    def mean(seed):
        words = ["autoencoder=identity", "split=val", "n=20", "device=cpu", f"seed={seed}"]
        return json.loads(latents(composed("latents", [*words, f"out={tmp_path / 'x.json'}"])).read_text())["mean"]

    assert mean(0) == mean(0) != mean(1)
    assert "to use" not in capsys.readouterr().out  # pixel space takes no scale


def test_help_teaches_and_is_quick():
    output = command("-X", "importtime", "-m", "dit.cli.latents", "--help")
    assert output.returncode == 0, output.stderr
    assert "Try:" in output.stdout
    assert "autoencoder: " in output.stdout
    imported = {line.rsplit("|")[-1].strip() for line in output.stderr.splitlines()}
    assert not imported & {"torch", "lightning", "diffusers"}


def test_a_misspelt_word_ends_in_one_line():
    assert "'autoencoder'" in only_line_of(command("-m", "dit.cli.latents", "autoencodr=kl"))


@pytest.mark.parametrize(("word", "part"), [
    ("split=test", "split=test: this data set has train, val, unseen"),
    ("n=1", "n=1 must be at least 2"),
    ("batch_size=0", "batch_size=0 must be at least 1"),
])  # fmt: skip
def test_a_wrong_value_ends_in_one_line(word, part, tmp_path):
    with pytest.raises(ValueError, match=part):
        latents(composed("latents", [word, f"out={tmp_path / 'x.json'}"]))
