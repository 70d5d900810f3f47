import json
import shutil

import numpy as np
import pytest
from PIL import Image

from dit.data.picture_folder import PictureFolder
from dit.picture_files import read as load


def noise(seed, size=(24, 16)):
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def paint(path, seed=0, size=(24, 16), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed, size)).convert(mode).save(path)


def test_pictures_equal_the_files_sorted_by_name(tmp_path, capsys):
    for i in (2, 0, 1):
        paint(tmp_path / "deep" / f"{i}.png", i)
    source = PictureFolder(tmp_path)
    assert [file.name for file in source.files] == ["0.png", "1.png", "2.png"]
    assert source.captions == ["", "", ""]
    images = source.images(np.array([2, 0]))
    assert images.dtype == np.uint8
    assert np.array_equal(images, np.stack([noise(2), noise(0)]).transpose(0, 3, 1, 2))
    assert "warning" not in capsys.readouterr().err


def test_captions_are_read_if_there_are_any(tmp_path):
    for i in range(3):
        paint(tmp_path / f"{i}.png", i)
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": "described"}))
    (tmp_path / "1.txt").write_text("beside\n")
    assert PictureFolder(tmp_path).captions == ["described", "beside", ""]


def test_the_fingerprint_depends_on_contents_captions_and_size(tmp_path):
    for i in range(3):
        paint(tmp_path / "a" / f"{i}.png", i)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first = PictureFolder(tmp_path / "a").fingerprint
    assert PictureFolder(tmp_path / "b").fingerprint == first
    others = {first, PictureFolder(tmp_path / "b", 8).fingerprint}
    (tmp_path / "b" / "0.txt").write_text("a caption")
    others.add(PictureFolder(tmp_path / "b").fingerprint)
    paint(tmp_path / "a" / "2.png", 9)
    others.add(PictureFolder(tmp_path / "a").fingerprint)
    (tmp_path / "a" / "2.png").unlink()
    others.add(PictureFolder(tmp_path / "a").fingerprint)
    assert len(others) == 5


def test_broken_grey_and_transparent_pictures_are_counted_and_named(tmp_path, capsys):
    for i in range(2):
        paint(tmp_path / f"fine_{i}.png", i)
    for suffix in ("png", "jpg", "webp"):
        paint(tmp_path / f"torn.{suffix}")
        whole = (tmp_path / f"torn.{suffix}").read_bytes()
        (tmp_path / f"torn.{suffix}").write_bytes(whole[: len(whole) * 3 // 4])
    spoilt = bytearray((tmp_path / "fine_0.png").read_bytes())
    spoilt[60] ^= 255
    (tmp_path / "spoilt.png").write_bytes(spoilt)
    (tmp_path / "text.jpg").write_text("no picture")
    paint(tmp_path / "grey.png", mode="L")
    Image.fromarray(np.full((16, 24), 257 * 200, np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGBA", (24, 16), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    source = PictureFolder(tmp_path)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning: " in line]
    assert len(warnings) == 3
    broken, grey, alpha = warnings
    assert "5 pictures" in broken
    assert "cannot be read and are left out" in broken
    assert all(name in broken for name in ("torn.png", "torn.jpg", "torn.webp", "spoilt.png", "text.jpg"))
    assert "2 pictures" in grey
    assert all(name in grey for name in ("grey.png", "deep.png"))
    assert "1 pictures" in alpha
    assert "clear.png" in alpha
    names = [file.name for file in source.files]
    assert names == ["clear.png", "deep.png", "fine_0.png", "fine_1.png", "grey.png"]
    images = source.images(np.arange(5))
    assert (images[0] == 255).all()  # on white
    assert (images[1] == 200).all()  # 16 bits of grey
    assert (images[4] == images[4, :1]).all()


def test_pictures_of_several_sizes_need_a_size(tmp_path):
    for i in range(3):
        paint(tmp_path / f"a{i}.png", i)
    paint(tmp_path / "b.jpg", 3, (40, 40))
    with pytest.raises(ValueError, match=r"2 sizes \(3 of 24x16, 1 of 40x40\).*give size=16 to crop"):
        PictureFolder(tmp_path)
    source = PictureFolder(tmp_path, 16)
    assert source.images(np.arange(4)).shape == (4, 3, 16, 16)
    assert np.array_equal(source.images(np.array([0]))[0], load(tmp_path / "a0.png", 16))


def test_pictures_are_rotated_by_their_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a.png", "b.jpg"):
        Image.fromarray(noise(0)).save(tmp_path / name, exif=exif)
    assert PictureFolder(tmp_path).images(np.arange(2)).shape == (2, 3, 24, 16)


def test_errors_are_one_line(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        PictureFolder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no picture below it"):
        PictureFolder(tmp_path)
    paint(tmp_path / "a.png")
    with pytest.raises(ValueError, match="at least 1"):
        PictureFolder(tmp_path, 0)
    source = PictureFolder(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"cannot read the picture .*a\.png"):
        source.images(np.array([0]))
