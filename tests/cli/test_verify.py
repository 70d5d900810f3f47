"""What the verify command says of a file."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from dit.cli.generate import generate
from dit.cli.verify import verify
from dit.generation.authority import write_authority
from dit.generation.credentials import read_credentials
from dit.generation.watermark import embed

from ..conftest import command, composed, only_line_of

pytest.importorskip("c2pa")


def test_verify_reads_the_watermark_and_the_credentials(tmp_path):
    key, file = tmp_path / "key", tmp_path / "a picture, marked.png"
    key.write_bytes(bytes(32))
    picture = np.random.default_rng(0).integers(90, 110, (32, 32, 3)).astype(np.uint8)
    Image.fromarray(embed(picture, bytes(32), 4)).save(file)
    output = command("-m", "dit.cli.verify", str(file), f"key={key}")
    assert output.returncode == 0, output.stderr
    found = json.loads(output.stdout)
    assert found["watermark"]["p_value"] < 1e-6
    assert found["credentials"]["state"] == "missing"


def test_verify_refuses_what_is_no_picture_in_one_line(tmp_path):
    (tmp_path / "text").write_text("no picture")
    line = only_line_of(command("-m", "dit.cli.verify", str(tmp_path / "text")))
    assert "cannot read the picture" in line


def test_the_watermark_alone_needs_no_extra(tmp_path, monkeypatch, capsys):
    (tmp_path / "key").write_bytes(bytes(32))
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "c2pa", None)
    found = verify(composed("verify", [f"file={tmp_path / 'a.png'}", f"key={tmp_path / 'key'}"]))
    assert 0 <= found["watermark"]["p_value"] <= 1
    assert found["credentials"]["state"] == "unread"
    assert "pip install 'dit[marks]'" in found["credentials"]["problems"][0]
    for words in ([], [f"key={tmp_path / 'key'}", "anchors=ca.pem"]):
        with pytest.raises(ValueError, match=r"need an extra: pip install 'dit\[marks\]'"):
            verify(composed("verify", [f"file={tmp_path / 'a.png'}", *words]))


def test_generate_signs_what_it_delivers(tiny_run, tmp_path):
    """With an audit log and a policy around; the file has its own row."""
    write_authority(tmp_path / "keys", 30)
    keys = [f"certificate={tmp_path / 'keys/signer.pem'}", f"certificate_key={tmp_path / 'keys/signer.key'}"]
    words = [f"ckpt={tiny_run}", "prompts=[a large red star on a black background]", "recipe.steps=1"]
    folder = generate(composed("generate", [*words, f"out={tmp_path / 'out'}", *keys, f"audit={tmp_path / 'log'}"]))
    [row] = [json.loads(line) for line in (folder / "generated.jsonl").read_text().splitlines()]
    found = read_credentials(folder / row["file"], tmp_path / "keys/ca.pem")
    assert (found.state, found.fields) == ("trusted", row)
    for key in keys:
        with pytest.raises(ValueError, match="give both or neither"):
            generate(composed("generate", [*words, f"out={tmp_path / 'other'}", key]))


def test_a_local_authority_is_one_command(tmp_path):
    output = command("-m", "dit.cli.authority", f"out={tmp_path / 'keys'}")
    assert output.returncode == 0, output.stderr
    assert {file.name for file in (tmp_path / "keys").iterdir()} == {"ca.pem", "signer.pem", "signer.key"}
