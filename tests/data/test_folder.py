import json

import numpy as np
import pytest
from PIL import Image

from dit.data.folder import Folder, load, scan


def paint(path, colour=(200, 30, 30), size=(40, 20), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path)


@pytest.fixture(autouse=True)
def fresh_scan():
    scan.cache_clear()


def everything(root, **options):
    """All readable pictures with their captions, whichever split they fell into."""
    found = {}
    for split in ("train", "val"):
        try:
            folder = Folder(str(root), 8, split, val_share=0.5, **options)
        except ValueError as error:
            assert "split is empty" in str(error)
            continue
        found |= {file.name: caption for file, caption in zip(folder.files, folder.captions, strict=True)}
    return found


def test_metadata_text_files_and_class_folders(tmp_path):
    for i in range(3):
        paint(tmp_path / f"described_{i}.png", (i, 0, 0))
    lines = [{"file_name": f"described_{i}.png", "text": f"number {i}"} for i in range(3)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    paint(tmp_path / "with_text.jpg", (0, 9, 0))
    (tmp_path / "with_text.txt").write_text("a text beside\n")
    paint(tmp_path / "red_panda" / "one.png", (0, 0, 9))
    assert everything(tmp_path, template="a {}") == {
        "described_0.png": "number 0", "described_1.png": "number 1", "described_2.png": "number 2",
        "with_text.jpg": "a text beside", "one.png": "a red panda",
    }  # fmt: skip


def test_broken_and_captionless_pictures_are_counted_named_and_survived(tmp_path, capsys):
    for i in range(20):
        paint(tmp_path / "cat" / f"{i}.png", (i, 0, 0))
    (tmp_path / "cat" / "torn.png").write_bytes((tmp_path / "cat" / "0.png").read_bytes()[:40])
    (tmp_path / "cat" / "text.jpg").write_text("not a picture")
    paint(tmp_path / "nameless.png")
    assert len(everything(tmp_path, template="a {}")) == 20
    told = capsys.readouterr().err
    assert "2 pictures" in told
    assert "cat/torn.png" in told
    assert "cat/text.jpg" in told
    assert "1 pictures" in told
    assert "nameless.png" in told


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    suffix = "tif" if mode == "CMYK" else "png"
    if mode == "I;16":
        (tmp_path / "x").mkdir()
        Image.fromarray(np.full((20, 40), 300, dtype=np.uint16)).save(tmp_path / "x" / f"a.{suffix}")
    else:
        paint(tmp_path / "x" / f"a.{suffix}", mode=mode)
    assert everything(tmp_path, template="a {}") == {f"a.{suffix}": "a x"}


def test_transparency_is_laid_on_white(tmp_path):
    (tmp_path / "x").mkdir()
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "x" / "clear.png")
    assert (load(tmp_path / "x" / "clear.png", 8) == 255).all()


def test_a_copy_of_a_picture_is_on_the_same_side(tmp_path):
    for i in range(40):
        paint(tmp_path / "x" / f"{i}.png", (i, i, i))
        paint(tmp_path / "y" / f"copy_{i}.png", (i, i, i))
    train = Folder(str(tmp_path), 8, "train", "a {}", 0.3)
    val = Folder(str(tmp_path), 8, "val", "a {}", 0.3)
    assert len(train) + len(val) == 80
    assert not {f.stem.split("_")[-1] for f in train.files} & {f.stem.split("_")[-1] for f in val.files}


def test_faults_name_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        Folder(str(tmp_path / "nowhere"), 8, "train")
    with pytest.raises(ValueError, match=r"metadata\.jsonl"):
        Folder(str(tmp_path), 8, "train")
    with pytest.raises(ValueError, match="must hold a"):
        Folder(str(tmp_path), 8, "train", template="a photo")
    paint(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file": "a.png"}')
    scan.cache_clear()
    with pytest.raises(ValueError, match="line 1"):
        Folder(str(tmp_path), 8, "train")


def test_the_crop_is_adms():
    """A multiple of twice the side is averaged by boxes alone; what is left over is cut off on both sides; a picture of
    the right size stays as it is."""
    from dit.data.folder import centre_crop

    values = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(centre_crop(Image.fromarray(values), 32), values)
    halves = values.reshape(16, 2, 16, 2, 3).mean((1, 3))
    assert np.abs(np.asarray(centre_crop(Image.fromarray(values), 16)) - halves).max() <= 1  # Pillow rounds twice
    wide = np.concatenate([np.zeros((32, 5, 3), np.uint8), values, np.zeros((32, 6, 3), np.uint8)], axis=1)
    assert np.array_equal(centre_crop(Image.fromarray(wide), 32), values)
    assert centre_crop(Image.fromarray(values[:, :20]), 48).size == (48, 48)
