"""Content Credentials: pixels stay, and a changed file is found out."""

import io

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

pytest.importorskip("c2pa")
pytest.importorskip("cryptography")

from dit.generation.authority import write_authority
from dit.generation.credentials import SOURCE_TYPE, Signer, read_credentials

ROW = {"name": "one", "prompt": "a <red> star", "seed": 3, "model": "RUN", "weights": "abc"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    write_authority(folder, 30)
    return folder


@pytest.fixture(scope="module")
def png():
    info, buffer = PngInfo(), io.BytesIO()
    info.add_text("prompt", "a <red> star")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def signed(keys, png):
    return Signer(keys / "signer.pem", keys / "signer.key").sign(png, ROW)


def read(folder, content, anchors=None):
    file = folder / "picture.png"
    file.write_bytes(content)
    return read_credentials(file, anchors)


def test_signing_keeps_pixels_and_texts_and_adds_the_fields_of_iptc(png, signed):
    before, after = Image.open(io.BytesIO(png)), Image.open(io.BytesIO(signed))
    assert np.array_equal(np.asarray(before), np.asarray(after))
    assert after.text["prompt"] == "a <red> star"
    assert SOURCE_TYPE in after.text["XML:com.adobe.xmp"]
    assert 'AISystemUsed="dit RUN"' in after.text["XML:com.adobe.xmp"]


def test_a_signature_is_trusted_with_its_anchors_only(keys, signed, tmp_path):
    found = read(tmp_path, signed, keys / "ca.pem")
    assert (found.state, found.problems, found.signer) == ("trusted", (), "Local test signer")
    assert found.fields == ROW
    assert read(tmp_path, signed).state == "untrusted"
    write_authority(tmp_path / "other", 30)
    assert read(tmp_path, signed, tmp_path / "other" / "ca.pem").state == "untrusted"


def test_a_changed_byte_is_found(keys, signed, tmp_path):
    place = signed.rindex(b"IDAT") + 20
    changed = signed[:place] + bytes([signed[place] ^ 1]) + signed[place + 1 :]
    found = read(tmp_path, changed, keys / "ca.pem")
    assert found.state == "changed"
    assert "assertion.dataHash.mismatch" in found.problems


def test_a_file_saved_again_has_no_credentials(signed, tmp_path):
    Image.open(io.BytesIO(signed)).save(tmp_path / "again.png")
    assert read_credentials(tmp_path / "again.png").state == "missing"


def test_keys_are_secret_and_are_not_replaced(keys):
    assert (keys / "signer.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ValueError, match=r"cannot write .*signer.key: File exists"):
        write_authority(keys, 30)


def test_an_expired_certificate_and_another_key_are_refused(keys, tmp_path):
    write_authority(tmp_path, 0)
    with pytest.raises(ValueError, match=r"the certificate .*signer.pem expired on \d+-\d+-\d+: renew it"):
        Signer(tmp_path / "signer.pem", tmp_path / "signer.key")
    with pytest.raises(ValueError, match="is not the private key of"):
        Signer(keys / "signer.pem", tmp_path / "signer.key")
    with pytest.raises(ValueError, match="cannot read the certificate"):
        Signer(tmp_path / "none", tmp_path / "signer.key")
