"""What the verify command says of a file."""

import json

import numpy as np
import pytest
from PIL import Image

from dit.generation.watermark import embed

from ..conftest import command, only_line_of

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


def test_a_local_authority_is_one_command(tmp_path):
    output = command("-m", "dit.cli.authority", f"out={tmp_path / 'keys'}")
    assert output.returncode == 0, output.stderr
    assert {file.name for file in (tmp_path / "keys").iterdir()} == {"ca.pem", "signer.pem", "signer.key"}
