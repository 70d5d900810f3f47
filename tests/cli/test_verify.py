"""What the verify command says of a file."""

import hashlib
import json
import sys

import numpy as np
import pytest
from PIL import Image

from dit.cli.generate import generate
from dit.cli.verify import verify
from dit.generation.audit import AuditLog
from dit.generation.audited import replay
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
    output = command("-m", "dit.cli.verify", str(file), "marks=pattern", f"marks.key={key}")
    assert output.returncode == 0, output.stderr
    found = json.loads(output.stdout)
    assert found["watermark"]["p_value"] < 1e-6
    assert found["watermark"]["found"]
    assert found["credentials"]["state"] == "missing"


def test_verify_refuses_what_is_no_picture_in_one_line(tmp_path):
    (tmp_path / "text").write_text("no picture")
    line = only_line_of(command("-m", "dit.cli.verify", str(tmp_path / "text")))
    assert "cannot read the picture" in line


def test_the_watermark_alone_needs_no_extra(tmp_path, monkeypatch, capsys):
    (tmp_path / "key").write_bytes(bytes(32))
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "c2pa", None)
    marks = ["marks=pattern", f"marks.key={tmp_path / 'key'}"]
    found = verify(composed("verify", [f"file={tmp_path / 'a.png'}", *marks]))
    assert 0 <= found["watermark"]["p_value"] <= 1
    assert found["credentials"]["state"] == "unread"
    assert "pip install 'dit[marks]'" in found["credentials"]["problems"][0]
    for words in ([], [*marks, "anchors=ca.pem"]):
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
    assert AuditLog(tmp_path / "log").entry(2)["manifest"] == found.manifest
    for key in keys:
        with pytest.raises(ValueError, match="give both or neither"):
            generate(composed("generate", [*words, f"out={tmp_path / 'other'}", key]))


@pytest.mark.slow
def test_a_mark_in_the_noise_is_tested_through_the_run(tiny_run, tmp_path):
    """And the noise of generate is that of the key, once a card allows it."""
    (tmp_path / "key").write_bytes(bytes(32))
    prompt, marks = "a large red star on a black background", ["marks=noise", f"marks.key={tmp_path / 'key'}"]
    words = [
        f"ckpt={tiny_run}",
        f"prompts=[{prompt}]",
        "recipe.steps=2",
        *marks,
        f"marks.card={tmp_path / 'card.json'}",
    ]
    card = json.loads(generate(composed("generate", [*words, "measure=2"])).read_text())
    with pytest.raises(ValueError, match=r"marks=noise is refused .* choose another mark, more pictures for the card"):
        generate(composed("generate", [*words, f"out={tmp_path / 'out'}"]))
    card["entries"][0]["power"]["as delivered"]["interval"] = [0.95, 1.0]
    (tmp_path / "card.json").write_text(json.dumps(card))
    marked = generate(composed("generate", [*words, f"out={tmp_path / 'out'}"])) / "prompt_0_seed_0.png"
    plain = generate(composed("generate", [*words[:3], f"out={tmp_path / 'plain'}"])) / "prompt_0_seed_0.png"
    assert not np.array_equal(np.asarray(Image.open(marked)), np.asarray(Image.open(plain)))
    given = [f"file={marked}", *marks, f"ckpt={tiny_run}", f"prompt={prompt}"]
    found = verify(composed("verify", [*given, "seeds=0-3"]))["watermark"]
    assert 0 <= found["p_value"] <= 1
    assert found["tests"] == 16
    with pytest.raises(ValueError, match="seeds are missing: say which seeds the picture may have"):
        verify(composed("verify", given))
    with pytest.raises(ValueError, match="is tested through the model: say ckpt=RUN"):
        verify(composed("verify", given[:3]))


@pytest.mark.slow
def test_an_edit_as_jpeg_is_signed_with_its_parent_and_can_be_made_again(tiny_run, tmp_path, capsys):
    write_authority(tmp_path / "keys", 30)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / "photo.webp")
    words = [f"ckpt={tiny_run}", "prompts=[a large red star on a black background]", "recipe.steps=2", "strength=0.5"]
    words += [f"certificate={tmp_path / 'keys/signer.pem'}", f"certificate_key={tmp_path / 'keys/signer.key'}"]
    words += [
        f"image={tmp_path / 'photo.webp'}",
        "encoding=jpeg",
        f"out={tmp_path / 'out'}",
        f"audit={tmp_path / 'log'}",
    ]
    file = generate(composed("generate", words)) / "prompt_0_seed_0.jpg"
    found = verify(composed("verify", [f"file={file}", f"anchors={tmp_path / 'keys/ca.pem'}"]))["credentials"]
    assert found["state"] == "trusted"
    assert [action["action"] for action in found["actions"]] == ["c2pa.opened", "c2pa.edited"]
    assert found["actions"][1]["parameters"]["strength"] == 0.5
    assert found["parents"] == [{"title": "photo.webp", "signer": ""}]
    entry = AuditLog(tmp_path / "log", make=False).entry(2)
    assert (
        entry["pixels_sha256"]
        == found["fields"]["pixels_sha256"]
        == hashlib.sha256(Image.open(file).tobytes()).hexdigest()
    )
    assert replay(entry) == 0


@pytest.mark.slow
def test_generate_says_how_many_pictures_have_no_mark(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dit.generation.marked.demand_power", lambda *given: None)
    (tmp_path / "key").write_bytes(bytes(32))
    words = [f"ckpt={tiny_run}", "prompts=[a large red star on a black background]", "recipe.steps=1", "marks=pattern"]
    generate(
        composed(
            "generate", [*words, f"marks.key={tmp_path / 'key'}", "marks.amplitude=0.001", f"out={tmp_path / 'out'}"]
        )
    )
    assert "warning: the watermark is not found in 1 of 1 pictures" in capsys.readouterr().err


@pytest.mark.slow
def test_generate_marks_what_it_delivers_once_the_power_is_measured(tiny_run, tmp_path):
    """The row, the text of the file and its credentials say it, verify finds it, and a replay makes it again."""
    write_authority(tmp_path / "keys", 30)
    (tmp_path / "key").write_bytes(bytes(32))
    words = [f"ckpt={tiny_run}", "prompts=[a large red star on a black background]", "recipe.steps=1"]
    marks = [f"marks.key={tmp_path / 'key'}", f"marks.card={tmp_path / 'card.json'}", "marks.rate=1e-3"]
    marked = ["marks=pattern", *marks, "marks.amplitude=64"]
    card = json.loads(generate(composed("generate", [*words, *marked, "measure=36"])).read_text())
    assert card["entries"][0]["power"]["as delivered"]["interval"][0] >= 0.9, card
    assert not (tmp_path / "out").exists()
    keys = [f"certificate={tmp_path / 'keys/signer.pem'}", f"certificate_key={tmp_path / 'keys/signer.key'}"]
    words += [f"out={tmp_path / 'out'}", f"audit={tmp_path / 'log'}"]
    folder = generate(composed("generate", [*words, *marked, *keys]))
    [row] = [json.loads(line) for line in (folder / "generated.jsonl").read_text().splitlines()]
    assert row["watermark"]["amplitude"] == 64
    found = verify(composed("verify", [f"file={folder / row['file']}", "marks=pattern", *marks[::2]]))
    assert found["watermark"]["found"]
    assert found["watermark"]["p_value"] == row["watermark"]["p_value"]
    assert found["credentials"]["fields"]["watermark"] == row["watermark"]
    with Image.open(folder / row["file"]) as picture:
        assert json.loads(picture.text["watermark"]) == row["watermark"]
    assert replay(AuditLog(tmp_path / "log", make=False).entry(2)) == 0
    with pytest.raises(ValueError, match="is of the mark"):
        generate(composed("generate", [*words, *marked, "marks.amplitude=63", "replace=true"]))
    for other in ([], ["marks=pattern", *marks[::2]]):
        with pytest.raises(ValueError, match=r"measure needs a watermark and the file of its card: marks=pattern"):
            generate(composed("generate", [*words, *other, "measure=40"]))


def test_a_local_authority_is_one_command(tmp_path):
    output = command("-m", "dit.cli.authority", f"out={tmp_path / 'keys'}")
    assert output.returncode == 0, output.stderr
    assert {file.name for file in (tmp_path / "keys").iterdir()} == {"ca.pem", "signer.pem", "signer.key"}
