"""One reading of a picture, whatever its mode."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dit.picture_files import UnreadablePicture, inspect, read, resized


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def write_png(path, depth, colour, row, clear=None):
    """An 8 x 8 PNG of equal rows, with the colour `clear` transparent."""
    header = struct.pack(">IIBBBBB", 8, 8, depth, colour, 0, 0, 0)
    parts = [
        (b"IHDR", header),
        *([(b"tRNS", clear)] if clear else []),
        (b"IDAT", zlib.compress((b"\0" + row) * 8)),
        (b"IEND", b""),
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


RGB = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
RAMP = np.linspace(0, 65535, 8).astype(np.uint16)
GREYS = (RAMP / 257).round().astype(int).tolist()


@pytest.mark.parametrize(("mode", "suffix"), [
    ("1", "png"), ("L", "png"), ("LA", "png"), ("RGBA", "png"), ("P", "png"), ("P", "gif"), ("PA", "png"), ("CMYK", "tif"),
    ("YCbCr", "jpg"), ("RGB", "bmp"), ("RGBA", "webp"),
])  # fmt: skip
def test_every_mode_becomes_rgb(tmp_path, mode, suffix):
    file, picture = tmp_path / f"a.{suffix}", Image.fromarray(RGB).convert(mode if mode != "PA" else "P")
    picture.save(file, **({"lossless": True} if suffix == "webp" else {"quality": 100} if suffix == "jpg" else {}))
    expected = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    found = read(file)
    assert found.dtype == np.uint8
    if suffix != "jpg":
        assert np.array_equal(found, expected)
    inspect(file)


@pytest.mark.parametrize(("depth", "colour", "row", "clear", "expected"), [
    (1, 0, bytes([0b10101010]), struct.pack(">H", 0), [255] * 8),
    (2, 0, bytes([0b00011011] * 2), struct.pack(">H", 1), [0, 255, 170, 255] * 2),
    (4, 0, bytes([0x12, 0x34, 0x56, 0x78]), struct.pack(">H", 3), [17, 34, 255, 68, 85, 102, 119, 136]),
    (8, 0, bytes(range(8)), struct.pack(">H", 3), [0, 1, 2, 255, 4, 5, 6, 7]),
    (16, 0, RAMP.astype(">u2").tobytes(), None, GREYS),
    (16, 0, RAMP.astype(">u2").tobytes(), struct.pack(">H", int(RAMP[2])), [*GREYS[:2], 255, *GREYS[3:]]),
    (16, 2, np.repeat(RAMP, 3).astype(">u2").tobytes(), struct.pack(">3H", *[int(RAMP[2])] * 3), [*[int(v) >> 8 for v in RAMP[:2]], 255, *[int(v) >> 8 for v in RAMP[3:]]]),
    (16, 4, struct.pack(">16H", *[40000, 65535] * 7, 40000, 0), None, [156] * 7 + [255]),
])  # fmt: skip
def test_every_depth_of_png_and_its_transparent_colour(tmp_path, depth, colour, row, clear, expected):
    write_png(tmp_path / "a.png", depth, colour, row, clear)
    assert read(tmp_path / "a.png")[:, 4].tolist() == [expected] * 3


def test_sixteen_and_twelve_bits_are_scaled(tmp_path):
    Image.fromarray(np.tile(RAMP, (8, 1))).save(tmp_path / "a.tif")
    (tmp_path / "a.pgm").write_bytes(b"P5 8 1 1023\n" + np.linspace(0, 1023, 8).astype(">u2").tobytes())
    assert read(tmp_path / "a.tif")[0, 0].tolist() == GREYS
    assert np.allclose(read(tmp_path / "a.pgm")[0, 0], np.linspace(0, 255, 8), atol=1)


@pytest.mark.parametrize(("name", "values"), [
    ("a.tif", np.linspace(0, 1, 64, dtype=np.float32)), ("b.tif", np.linspace(0, 65535, 64).astype(np.int32)),
])  # fmt: skip
def test_values_of_an_unknown_range_are_refused_by_name(tmp_path, name, values):
    Image.fromarray(values.reshape(8, 8)).save(tmp_path / name)
    for look in (read, inspect):
        with pytest.raises(UnreadablePicture, match=rf"{name}: its .* values may have any range; save it with 8 or 16"):
            look(tmp_path / name)


def test_transparency_is_laid_on_white(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(tmp_path / "half.png")
    assert (read(tmp_path / "clear.png") == 255).all()
    assert read(tmp_path / "half.png")[:, 0, 0].tolist() == [255, 127, 127]


def test_exif_turns_a_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB[:4]).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read(tmp_path / "a.png"), np.rot90(RGB[:4], -1).transpose(2, 0, 1))
    assert inspect(tmp_path / "a.png").size == (4, 8)


def test_what_is_no_picture_is_refused_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(RGB).save(tmp_path / "big.png")
    Image.fromarray(RGB).save(tmp_path / "torn.jpg")
    (tmp_path / "torn.jpg").write_bytes((tmp_path / "torn.jpg").read_bytes()[:-300])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    for name, why in {
        "text.png": "not a picture",
        "big.png": "more than 40 pixels",
        "torn.jpg": "",
        "nowhere.png": "No such file",
    }.items():
        for look in (read, inspect):
            with pytest.raises(UnreadablePicture, match=rf"cannot read the picture .*{name}: .*{why}") as error:
                look(tmp_path / name)
            assert "\n" not in str(error.value)


def test_the_crop_is_adms():
    """A multiple of twice the side is averaged by boxes alone; what is left over is cut off on both sides; a picture of
    the right size stays as it is."""
    values = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(resized(Image.fromarray(values), 32), values)
    halves = values.reshape(16, 2, 16, 2, 3).mean((1, 3))
    assert np.abs(np.asarray(resized(Image.fromarray(values), 16)) - halves).max() <= 1  # Pillow rounds twice
    wide = np.concatenate([np.zeros((32, 5, 3), np.uint8), values, np.zeros((32, 6, 3), np.uint8)], axis=1)
    assert np.array_equal(resized(Image.fromarray(wide), 32), values)
    assert resized(Image.fromarray(values[:, :20]), 48).size == (48, 48)


def whole_then_cropped(picture, size):
    """ADM's crop to the letter, for pictures less than twice too large."""
    scale = size / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return np.asarray(picture.crop((left, top, left + size, top + size))).astype(int)


@pytest.mark.parametrize(
    ("width", "height"), [(20, 16), (40, 11), (11, 40), (63, 17), (90, 13), (13, 200), (700, 3), (1, 60)]
)
def test_a_long_picture_is_cropped_before_it_is_enlarged(width, height):
    """Pillow may take the two axes in another order then, which differs where it clips between them: not here."""
    values = np.random.default_rng(0).integers(64, 192, (height, width, 3), dtype=np.uint8)
    picture, size = Image.fromarray(values), 32
    found, exact = np.asarray(resized(picture, size)).astype(int), whole_then_cropped(picture, size)
    longest = max(width, height) / min(width, height)
    assert abs(found - exact).max() <= (2 if longest > 4 else 0)


def test_a_line_of_pixels_costs_no_gigabyte(tmp_path, monkeypatch):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (1, 6000, 3), dtype=np.uint8)).save(tmp_path / "line.png")
    sides, resize = [], Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *a, **k: sides.append(size) or resize(self, size, *a, **k)
    )
    assert read(tmp_path / "line.png", 256).shape == (3, 256, 256)
    assert max(w * h for w, h in sides) <= 256 * 256
