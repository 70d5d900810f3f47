"""From a picture to its training data: every link is checked, and an open one says what to do."""

import json
import shutil

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from dit.checkpoints.native import CONFIG
from dit.cli.audit import arguments, audit
from dit.cli.generate import generate
from dit.cli.provenance import provenance
from dit.generation.authority import write_authority

from ..conftest import composed

pytest.importorskip("c2pa")
NAMES = ["credentials", "log", "entry", "weights", "run", "data", "data manifest"]


@pytest.fixture(scope="module")
def made(tiny_run, tmp_path_factory):
    """A folder with a run, its provenance, a signed picture and its log."""
    folder = tmp_path_factory.mktemp("chain")
    run = shutil.copytree(tiny_run, folder / "run")
    write_authority(folder / "keys", 30)
    keys = [f"certificate={folder / 'keys/signer.pem'}", f"certificate_key={folder / 'keys/signer.key'}"]
    words = [f"ckpt={run}", "prompts=[a large red star on a black background]", "recipe.steps=1", "device=cpu"]
    generate(composed("generate", [*words, f"out={folder / 'out'}", f"audit={folder / 'log'}", *keys]))
    provenance(composed("provenance", [f"ckpt={run}"]))
    return folder


def chain(folder, capsys, *words, picture="out/prompt_0_seed_0.png"):
    """Returns the state of each link, the text of each, and the status."""
    capsys.readouterr()
    status = audit(arguments(["chain", str(folder / "log"), str(folder / picture), *words]))
    lines = [line.partition(": ") for line in capsys.readouterr().out.splitlines()]
    return {line[0][6:]: (line[0][:4].strip(), line[2]) for line in lines}, status


@pytest.mark.slow
def test_every_link_of_a_picture_is_closed(made, capsys):
    found, status = chain(made, capsys, "--anchors", str(made / "keys/ca.pem"))
    assert list(found) == NAMES
    assert {state for state, _ in found.values()} == {"ok"}, found
    assert status == 0
    assert "trusted" in found["credentials"][1]
    assert "as in the entry" in found["weights"][1]
    assert "200e7919cc99f1ee" in found["data"][1]  # the fingerprint of the tiny run's training pictures


@pytest.mark.slow
def test_a_picture_saved_again_is_found_by_its_pixels(made, tmp_path, capsys):
    Image.open(made / "out/prompt_0_seed_0.png").save(tmp_path / "again.png")
    found, status = chain(made, capsys, picture=tmp_path / "again.png")
    assert status == 1
    assert [name for name in NAMES if found[name][0] == "OPEN"] == ["credentials", "entry"]
    assert "certificate=FILE" in found["credentials"][1]
    assert "these pixels in another file" in found["entry"][1]
    Image.new("RGB", (32, 32)).save(tmp_path / "other.png")
    found, status = chain(made, capsys, picture=tmp_path / "other.png")
    assert (list(found), status) == (NAMES[:3], 1)
    assert "no entry has these pixels" in found["entry"][1]


@pytest.mark.slow
def test_a_run_that_names_code_from_outside_is_followed_with_consent(made, tmp_path, capsys, monkeypatch):
    (tmp_path / "outside_link.py").write_text(
        "from dit.diffusion.objective import Objective as Own\n\n\nclass Mine(Own): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("dit.trust._packages", set())
    folder = shutil.copytree(made, tmp_path / "copy")
    file = folder / "run/checkpoints/step_0000006.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    checkpoint[CONFIG]["objective"]["_target_"] = "outside_link.Mine"
    torch.save(checkpoint, file)
    OmegaConf.save(OmegaConf.create(checkpoint[CONFIG]), folder / "run/config.yaml")
    run = ["--ckpt", str(folder / "run")]
    found, status = chain(folder, capsys, *run)
    assert (list(found), status) == (NAMES[:4], 1)
    assert found["weights"][1].endswith("if you trust it, say --trust outside_link")
    found, _ = chain(folder, capsys, *run, "--trust", "outside_link")
    assert {found[name][0] for name in ("weights", "run", "data")} == {"ok"}, found


@pytest.mark.slow
def test_what_is_broken_is_named(made, tmp_path, capsys):
    folder = shutil.copytree(made, tmp_path / "copy")
    run = ["--ckpt", str(folder / "run")]

    def opened(name, text):
        found, status = chain(folder, capsys, *run)
        assert status == 1
        assert (found[name][0], [n for n, (state, _) in found.items() if state == "OPEN"]) == ("OPEN", [name])
        assert text in found[name][1]

    rows = folder / "run/provenance/rows.parquet"
    whole = rows.read_bytes()
    rows.write_bytes(whole + b"x")
    opened("data manifest", "was changed; write it again: python -m dit.cli.provenance ckpt=")
    rows.unlink()
    opened("data manifest", "has none; write it: python -m dit.cli.provenance ckpt=")
    rows.write_bytes(whole)
    environment = folder / "run/environment.json"
    held = json.loads(environment.read_text())
    held["data"]["train"]["fingerprint"] = "0" * 16
    environment.write_text(json.dumps(held))
    opened("data", "train changed since the training")
    environment.write_text((made / "run/environment.json").read_text())
    config = folder / "run/config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 1"))
    opened("run", "is not the config in step_0000006.ckpt")
    run[1] = str(folder / "run/checkpoints/step_0000004.ckpt")
    opened("weights", "the entry ")
    run[1] = "nowhere"
    opened("weights", "nowhere is not there; say where the run is: --ckpt RUN")
