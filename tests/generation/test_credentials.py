"""Content Credentials: pixels stay, and a changed file is found out."""

import io
import json
import random
import socket
import struct
import sys
import threading
import zlib
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("c2pa")
pytest.importorskip("cryptography")

from dit.generation.authority import write_authority
from dit.generation.credentials import Signer, manifest_id, read_credentials
from dit.generation.encoding import SOURCES, Encoding, png_of
from dit.generation.verification import check_pixels, findings, in_words
from dit.picture_files import read_bytes

ROW = {"name": "one", "prompt": "a <red> star", "seed": 3, "model": "RUN", "weights": "abc"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    write_authority(folder, 30)
    return folder


@pytest.fixture(scope="module")
def pixels():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 32, 32), np.uint8))


@pytest.fixture(scope="module")
def png(pixels):
    return png_of(pixels, ROW)


@pytest.fixture(scope="module")
def signed(keys, png):
    return Signer(keys / "signer.pem", keys / "signer.key").sign(png, ROW)


def read(folder, content, anchors=None, kind="png"):
    file = folder / f"picture.{kind}"
    file.write_bytes(content)
    return read_credentials(file, anchors)


def test_signing_keeps_pixels_texts_and_the_fields_of_iptc(png, signed):
    before, after = Image.open(io.BytesIO(png)), Image.open(io.BytesIO(signed))
    assert np.array_equal(np.asarray(before), np.asarray(after))
    assert after.text["prompt"] == "a <red> star"
    assert f"{SOURCES}trainedAlgorithmicMedia" in after.text["XML:com.adobe.xmp"]
    assert 'AISystemUsed="dit RUN"' in after.text["XML:com.adobe.xmp"]


def test_a_signature_is_trusted_with_its_anchors_only(keys, signed, tmp_path):
    found = read(tmp_path, signed, keys / "ca.pem")
    assert (found.state, found.problems, found.signer) == ("trusted", (), "Local test signer")
    assert found.fields == ROW
    assert read(tmp_path, signed).state == "untrusted"
    source = {"action": "c2pa.created", "digitalSourceType": f"{SOURCES}trainedAlgorithmicMedia"}
    assert (found.actions, found.parents) == ((source,), ())
    write_authority(tmp_path / "other", 30)
    assert read(tmp_path, signed, tmp_path / "other" / "ca.pem").state == "untrusted"


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_other_formats_are_signed_and_keep_their_pixels_and_fields(keys, pixels, tmp_path, kind):
    encoding = Encoding(kind, 80)
    row = {**ROW, "prompt": "ein grüner <Stern>"}
    content = encoding.file(pixels, row)
    signed = Signer(keys / "signer.pem", keys / "signer.key").sign(content, row)
    found = read(tmp_path, signed, keys / "ca.pem", kind)
    assert (found.state, found.fields) == ("trusted", row)
    with Image.open(io.BytesIO(signed)) as picture:
        assert picture.format == kind.upper()
        assert json.loads(picture.getexif()[0x010E]) == row
        assert f'DigitalSourceType="{SOURCES}trainedAlgorithmicMedia"'.encode() in picture.info["xmp"]
        after = np.asarray(picture).transpose(2, 0, 1)
    assert np.array_equal(after, encoding.pixels(pixels))
    assert not np.array_equal(after, pixels)
    with pytest.raises(ValueError, match=f"one: its row is too long for a {kind} file: say encoding=png"):
        encoding.file(pixels, {**ROW, "prompt": "a" * 70000})
    assert len(Encoding(kind, 30).file(pixels, ROW)) < len(content)
    changed = signed[:-40] + bytes([signed[-40] ^ 1]) + signed[-39:]
    assert read(tmp_path, changed, keys / "ca.pem", kind).state == "changed"


def test_an_edit_names_its_parent_and_who_signed_that(keys, pixels, png, signed, tmp_path):
    signer = Signer(keys / "signer.pem", keys / "signer.key")
    for parent, by in [(png, ""), (signed, "Local test signer")]:
        (tmp_path / "photo.png").write_bytes(parent)
        for edit, source in [
            ({"strength": 0.6, "border": [0, 0, 0, 0], "source": None}, "trainedAlgorithmicMedia"),
            ({"strength": 1.0, "border": [0, 0, 8, 0], "source": None}, "compositeWithTrainedAlgorithmicMedia"),
            ({"strength": 1.0, "mask_sha256": "a"}, "compositeWithTrainedAlgorithmicMedia"),
        ]:
            row = {**ROW, "edit": edit}
            found = read(tmp_path, signer.sign(png_of(pixels, row), row, tmp_path / "photo.png"), keys / "ca.pem")
            assert found.state == "trusted"
            assert [action["action"] for action in found.actions] == ["c2pa.opened", "c2pa.edited"]
            assert found.actions[1]["digitalSourceType"] == SOURCES + source
            assert found.actions[1]["parameters"]["strength"] == edit["strength"]
            assert found.actions[1]["parameters"].get("border") == (str(edit["border"]) if "border" in edit else None)
            assert found.fields == row
            assert found.parents == ({"title": "photo.png", "signer": by},)


def test_a_changed_byte_is_found(keys, signed, tmp_path):
    place = signed.rindex(b"IDAT") + 20
    changed = signed[:place] + bytes([signed[place] ^ 1]) + signed[place + 1 :]
    found = read(tmp_path, changed, keys / "ca.pem")
    assert found.state == "changed"
    assert "assertion.dataHash.mismatch" in found.problems


def test_a_file_saved_again_has_no_credentials(signed, tmp_path):
    Image.open(io.BytesIO(signed)).save(tmp_path / "again.png")
    assert read_credentials(tmp_path / "again.png").state == "missing"


def test_the_word_jumb_in_a_prompt_is_no_manifest(pixels, signed, monkeypatch):
    unsigned = png_of(pixels, {**ROW, "prompt": "a jumbo jet"})
    assert b"jumb" in unsigned
    assert manifest_id(unsigned) == ""
    assert manifest_id(signed) == read_credentials(signed).manifest != ""
    monkeypatch.setitem(sys.modules, "c2pa", None)
    assert manifest_id(unsigned) == ""


def test_no_connection_is_opened_for_a_manifest_that_a_file_links_to(keys, tmp_path):
    opened = []

    def answer(server):
        while True:
            try:
                connection, peer = server.accept()
            except OSError:  # closed
                return
            opened.append(peer)
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.3)
        thread = threading.Thread(target=answer, args=(server,))
        thread.start()
        link = f"http://127.0.0.1:{server.getsockname()[1]}/a.c2pa"
        xmp = (
            '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
            f'<rdf:Description xmlns:dcterms="http://purl.org/dc/terms/" dcterms:provenance="{link}"/>'
            "</rdf:RDF></x:xmpmeta>"
        )
        Image.new("RGB", (16, 16)).save(tmp_path / "linked.jpg", xmp=xmp.encode())
        found = read_credentials((tmp_path / "linked.jpg").read_bytes(), keys / "ca.pem")
        assert link in found.problems[0]
        Image.new("RGB", (16, 16)).save(tmp_path / "edit.png")
        signer = Signer(keys / "signer.pem", keys / "signer.key")
        signer.sign((tmp_path / "edit.png").read_bytes(), ROW, tmp_path / "linked.jpg")
        thread.join()
    assert opened == []


def test_keys_are_secret_and_are_not_replaced(keys):
    assert (keys / "signer.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ValueError, match=r"cannot write .*signer.key: File exists"):
        write_authority(keys, 30)


def test_an_expired_certificate_and_another_key_are_refused(keys, png, tmp_path):
    write_authority(tmp_path, 0)
    with pytest.raises(ValueError, match=r"the certificate .*signer.pem expired on \d+-\d+-\d+: renew it"):
        Signer(tmp_path / "signer.pem", tmp_path / "signer.key")
    signer = Signer(keys / "signer.pem", keys / "signer.key")
    signer.expires = datetime.now(UTC) - timedelta(seconds=1)
    with pytest.raises(ValueError, match=r"the certificate .*signer.pem expired on"):  # while a server runs
        signer.sign(png, ROW)
    with pytest.raises(ValueError, match="is not the private key of"):
        Signer(keys / "signer.pem", tmp_path / "signer.key")
    with pytest.raises(ValueError, match="cannot read the certificate"):
        Signer(tmp_path / "none", tmp_path / "signer.key")


def test_verification_takes_the_content_of_a_file_and_says_it_in_words(keys, png, signed):
    found = findings(signed, keys / "ca.pem")
    assert found["credentials"]["state"] == "trusted"
    assert in_words(found) == (
        "Signed by Local test signer, whom this server trusts, and unchanged since. Made from the prompt 'a <red> star' "
        "with the seed 3."
    )
    unknown, changed = in_words(findings(signed)), in_words(findings(signed + b"more"))
    assert "does not know that signer" in unknown
    assert changed.startswith("Changed after it was signed")
    for words in (unknown, changed):
        assert "It claims to be made from the prompt" in words
        assert " Made from" not in words
    assert in_words(findings(png)).startswith("It has no Content Credentials")
    check_pixels(png, 32 * 32)
    for content, message in ((png, "has 32x32 pixels; at most 1023"), (b"text", "this is no picture")):
        with pytest.raises(ValueError, match=message):
            check_pixels(content, 32 * 32 - 1)
    bomb = png[:16] + struct.pack(">2I", 40_000, 40_000) + png[24:]
    bomb = bomb[:29] + struct.pack(">I", zlib.crc32(bomb[12:29])) + bomb[33:]
    with pytest.raises(ValueError, match="the picture has too many pixels to be decoded"):
        check_pixels(bomb, 10**6)
    Image.new("RGB", (16, 16)).save(bmp := io.BytesIO(), "BMP")
    with pytest.raises(ValueError, match="the picture is image/bmp: it must be a PNG, JPEG or WebP file"):
        check_pixels(bmp.getvalue(), 10**6)
    found = findings(bmp.getvalue())
    assert found["credentials"]["state"] == "unreadable"
    assert in_words(found).startswith("Its Content Credentials cannot be read: NotSupported")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({}, "has no row as text"),
        ({"row": 3}, "has no row as text"),
        ({"row": "[1]"}, "the signed row is not a JSON object"),
        ({"row": "{"}, "the signed row is not JSON"),
        ({"row": "NaN"}, "NaN is not a JSON number"),
        ({"row": "[" * 10**5}, "nested too deeply"),
        ({"row": '{"prompt": "\\ud800"}'}, "surrogates not allowed"),
        ({"row": '{"seed": 1e999}'}, "Out of range float values"),
    ],
)
def test_a_signed_row_of_another_form_is_unreadable(keys, png, monkeypatch, data, problem):
    monkeypatch.setattr("dit.generation.credentials.row_data", lambda row: data)
    content = Signer(keys / "signer.pem", keys / "signer.key").sign(png, ROW)
    found = findings(content, keys / "ca.pem")
    assert found["credentials"]["state"] == "unreadable"
    assert problem in found["credentials"]["problems"][0]
    assert found["credentials"]["fields"] == {}
    assert problem in in_words(found)


def test_a_file_with_changed_bytes_is_trusted_only_with_the_signed_pixels_and_row(keys, pixels):
    """Some bytes are padding; all other changes are found, and none is an error of another class."""
    rng, signer = random.Random(0), Signer(keys / "signer.pem", keys / "signer.key")
    for kind in ("png", "jpeg", "webp"):
        signed = signer.sign(Encoding(kind, 80).file(pixels, ROW), ROW)
        for _ in range(60):
            changed = bytearray(signed)
            for place in rng.sample(range(len(signed)), 2):
                changed[place] ^= rng.randrange(1, 256)
            try:
                found = findings(bytes(changed), keys / "ca.pem")
            except ValueError:
                continue
            if found["credentials"]["state"] in ("trusted", "untrusted"):
                assert found["credentials"]["fields"] == ROW
                assert np.array_equal(read_bytes(bytes(changed), "it"), read_bytes(signed, "it"))
            json.dumps(found | {"in_words": in_words(found)}, allow_nan=False, ensure_ascii=False).encode()
