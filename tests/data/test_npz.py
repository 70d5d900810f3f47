import numpy as np
import pytest

from dit.data.npz import NpzPictures

PICTURES = np.random.default_rng(0).integers(0, 256, (40, 16, 24, 3), dtype=np.uint8)
SAVE = {"stored": np.savez, "compressed": np.savez_compressed}


@pytest.mark.parametrize("how", SAVE)
def test_pictures_are_read_in_any_order(tmp_path, how):
    SAVE[how](tmp_path / "a.npz", PICTURES, np.arange(40))  # labels are ignored
    source = NpzPictures(tmp_path / "a.npz")
    assert len(source) == len(source.captions) == 40
    for rows in ([0, 1, 2], [30, 39], [5], [38, 2, 2]):
        images = source.images(np.array(rows))
        assert np.array_equal(images, PICTURES[rows].transpose(0, 3, 1, 2))
        assert images.dtype == np.uint8
        assert images.flags.c_contiguous


def test_other_arrays_may_precede_the_pictures(tmp_path):
    np.savez(tmp_path / "a.npz", labels=np.arange(1001), arr_0=PICTURES)
    assert np.array_equal(
        NpzPictures(tmp_path / "a.npz").images(np.array([0, 39])), PICTURES[[0, 39]].transpose(0, 3, 1, 2)
    )


def test_an_uncompressed_file_is_not_read_into_memory(tmp_path):
    np.savez(tmp_path / "a.npz", PICTURES)
    assert isinstance(NpzPictures(tmp_path / "a.npz").rows, np.memmap)


def test_the_fingerprint_depends_on_the_pictures_only(tmp_path):
    for name, save in SAVE.items():
        save(tmp_path / f"{name}.npz", PICTURES)
    np.savez(tmp_path / "more.npz", PICTURES, mu=np.zeros(3), sigma=np.eye(3))
    np.savez(tmp_path / "fewer.npz", PICTURES[:-1])
    np.savez(tmp_path / "shaped.npz", PICTURES.transpose(0, 2, 1, 3).copy())
    other = PICTURES.copy()
    other[39, 15, 23, 2] ^= 1
    np.savez(tmp_path / "other.npz", other)
    prints = {file.stem: NpzPictures(file).fingerprint for file in tmp_path.iterdir()}
    assert prints["stored"] == prints["compressed"] == prints["more"]
    assert len(set(prints.values())) == 4


class Opens:
    """Code that unpickling would run."""

    def __reduce__(self):
        return (open, ("evil", "w"))


@pytest.mark.parametrize(("arrays", "fault"), [
    ({"images": PICTURES}, r"holds images; pictures must be arr_0 of shape \(N, H, W, 3\) and type uint8"),
    ({"mu": np.zeros(3), "sigma": np.eye(3)}, "holds mu, sigma; pictures must be arr_0"),
    ({"arr_0": PICTURES / 255.0}, r"shape \(40, 16, 24, 3\) and type float64; pictures must"),
    ({"arr_0": np.full((2, 8, 8, 3), np.nan, np.float32)}, "type float32"),
    ({"arr_0": PICTURES.transpose(0, 3, 1, 2).copy()}, r"shape \(40, 3, 16, 24\) and type uint8; pictures must"),
    ({"arr_0": PICTURES[..., 0]}, r"shape \(40, 16, 24\)"),
    ({"arr_0": PICTURES[:0]}, r"shape \(0, 16"),
    ({"arr_0": np.asfortranarray(PICTURES)}, "in Fortran's order"),
    ({"arr_0": np.array([Opens()], dtype=object)}, "type object"),
])  # fmt: skip
def test_another_layout_is_refused_in_one_line(tmp_path, monkeypatch, arrays, fault):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=fault) as error:
        NpzPictures(tmp_path / "a.npz")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("how", SAVE)
def test_an_incomplete_file_is_refused_in_one_line(tmp_path, how):
    file = tmp_path / "a.npz"
    SAVE[how](file, PICTURES)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read as npz, or is incomplete"):
        NpzPictures(file)
    spoilt = bytearray(whole)
    spoilt[len(whole) // 2] ^= 255
    file.write_bytes(spoilt)
    with pytest.raises(ValueError, match="is broken"):
        NpzPictures(file)
    file.write_bytes(b"no npz")
    with pytest.raises(ValueError, match="cannot be read as npz"):
        NpzPictures(file)
    file.unlink()
    with pytest.raises(ValueError, match="No such file"):
        NpzPictures(file)


def test_a_short_array_is_refused(tmp_path):
    import io
    import zipfile

    stream = io.BytesIO()
    np.save(stream, PICTURES)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("arr_0.npy", stream.getvalue()[:-100])
    with pytest.raises(ValueError, match="holds 45980 of the 46080 bytes"):
        NpzPictures(tmp_path / "a.npz")
