import json
import os

import numpy as np
import pytest
from PIL import Image

from dit.data.folder import Folder
from dit.data.source import selected


def paint(path, colour=(200, 30, 30), size=(40, 20), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path)


@pytest.fixture(autouse=True)
def fresh_scan():
    selected.cache_clear()


def everything(root, **options):
    """All readable pictures of both splits with their captions."""
    found = {}
    for split in ("train", "val"):
        try:
            folder = Folder(str(root), 8, split, val_share=0.5, **options)
        except ValueError as error:
            assert "split empty" in str(error)
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


def test_broken_and_captionless_pictures_are_counted_named_and_left_out(tmp_path, capsys):
    for i in range(20):
        paint(tmp_path / "cat" / f"{i}.png", (i, 0, 0))
    (tmp_path / "cat" / "torn.png").write_bytes((tmp_path / "cat" / "0.png").read_bytes()[:40])
    (tmp_path / "cat" / "text.jpg").write_text("not a picture")
    paint(tmp_path / "nameless.png")
    assert len(everything(tmp_path, template="a {}")) == 20
    warnings = capsys.readouterr().err
    assert "2 pictures" in warnings
    assert "cat/torn.png" in warnings
    assert "cat/text.jpg" in warnings
    assert "1 pictures" in warnings
    assert "nameless.png" in warnings


def test_copies_of_a_picture_are_in_the_same_split(tmp_path):
    for i in range(40):
        paint(tmp_path / "x" / f"{i}.png", (i, i, i))
        paint(tmp_path / "y" / f"copy_{i}.png", (i, i, i))
    train = Folder(str(tmp_path), 8, "train", "a {}", 0.3)
    val = Folder(str(tmp_path), 8, "val", "a {}", 0.3)
    assert len(train) + len(val) == 80
    assert not {f.stem.split("_")[-1] for f in train.files} & {f.stem.split("_")[-1] for f in val.files}


def test_the_split_does_not_depend_on_the_size(tmp_path):
    """Pixels at the training size differ between sizes; the files do not."""
    rng = np.random.default_rng(0)
    for i in range(40):
        (tmp_path / "x").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(tmp_path / "x" / f"{i}.png")
    held_out = [Folder(str(tmp_path), size, "val", "a *", 0.3).files for size in (8, 16, 20)]
    assert held_out[0] == held_out[1] == held_out[2]
    for i in range(40, 60):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(tmp_path / "x" / f"{i}.png")
    selected.cache_clear()
    assert set(held_out[0]) <= set(Folder(str(tmp_path), 8, "val", "a *", 0.3).files)


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_split_names_a_share_that_works(tmp_path, split):
    for i in range(4):
        paint(tmp_path / "x" / f"{i}.png", (i, 0, 0))
    with pytest.raises(ValueError, match=f"leaves the {split} split empty; use data.val_share=") as error:
        Folder(str(tmp_path), 8, split, "a *", {"train": 0.999999, "val": 0.000001}[split])
    share = float(str(error.value).split("data.val_share=")[2].split(",")[0])
    assert (
        len(Folder(str(tmp_path), 8, "train", "a *", share)) + len(Folder(str(tmp_path), 8, "val", "a *", share)) == 4
    )


def test_copies_of_one_picture_cannot_be_split(tmp_path):
    for i in range(3):
        paint(tmp_path / "x" / f"{i}.png")
    messages = []
    for split in ("train", "val"):
        try:
            Folder(str(tmp_path), 8, split, "a *", 0.5)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) == 1
    assert "add different pictures" in messages[0]


def test_hidden_files_and_folders_are_skipped(tmp_path):
    paint(tmp_path / "cat" / "a.png", (1, 0, 0))
    for name in (
        "cat/.ipynb_checkpoints/a-checkpoint.png",
        "cat/._a.png",
        "__MACOSX/cat/b.png",
        ".git/c.png",
        "cat/@eaDir/a.png",
    ):
        paint(tmp_path / name, (9, 9, 9))
    assert everything(tmp_path, template="*") == {"a.png": "cat"}


def test_linked_class_folders_are_followed_and_cycles_end(tmp_path):
    paint(tmp_path / "elsewhere" / "a.png", (1, 0, 0))
    paint(tmp_path / "data" / "dog" / "b.png", (2, 0, 0))
    os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "cat")
    os.symlink(tmp_path / "data", tmp_path / "data" / "dog" / "again")
    assert everything(tmp_path / "data", template="*") == {"a.png": "cat", "b.png": "dog"}


def test_metadata_csv_is_read_like_jsonl(tmp_path):
    for i in range(3):
        paint(tmp_path / "cats" / f"{i}.png", (i, 0, 0))
    rows = ["file_name,text", 'cats/0.png,"a red cat, sitting"', 'cats/1.png,"two\nlines ""quoted"""', "cats/2.png,"]
    (tmp_path / "metadata.csv").write_text("\ufeff" + "\r\n".join(rows), encoding="utf-8", newline="")
    assert everything(tmp_path, template="a *") == {
        "0.png": "a red cat, sitting", "1.png": 'two\nlines "quoted"', "2.png": "a cats",
    }  # fmt: skip
    (tmp_path / "metadata.csv").write_text("name;text\ncats/0.png;a cat\n")
    selected.cache_clear()
    with pytest.raises(ValueError, match=r"metadata\.csv: its first line must name .* it holds name;text"):
        Folder(str(tmp_path), 8, "train")


def test_rows_that_match_no_picture_are_reported_with_the_correct_path(tmp_path, capsys):
    for i in range(3):
        paint(tmp_path / "train" / f"{i}.png", (i, 0, 0))
    lines = [{"file_name": f"train/{i}.png", "text": "a red cat"} for i in range(3)]
    (tmp_path / "train" / "metadata.jsonl").write_text(
        "\n".join(map(json.dumps, [*lines, {"file_name": "0.png", "text": "right"}]))
    )
    assert everything(tmp_path, template="a *") == {"0.png": "right", "1.png": "a train", "2.png": "a train"}
    printed = capsys.readouterr().err
    assert "3 of 4 rows" in printed
    assert "match no picture: 'train/0.png', 'train/1.png', 'train/2.png'; " in printed
    assert "write '0.png'" in printed


def test_texts_are_utf_8_with_or_without_a_mark_and_lines_end_at_newlines(tmp_path):
    for i in range(3):
        paint(tmp_path / f"{i}.png", (i, 0, 0))
    (tmp_path / "0.txt").write_bytes("\ufeffein Bär".encode())
    line = json.dumps({"file_name": "1.png", "text": "one\u2028line\x85 only"}, ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_bytes(("\ufeff" + line + "\r\n").encode())
    (tmp_path / "2.txt").write_text("a cat")
    assert everything(tmp_path) == {"0.png": "ein Bär", "1.png": "one\u2028line\x85 only", "2.png": "a cat"}
    (tmp_path / "metadata.jsonl").write_bytes("ein Bär".encode("latin-1"))
    selected.cache_clear()
    with pytest.raises(ValueError, match=r"metadata\.jsonl is not UTF-8"):
        Folder(str(tmp_path), 8, "train")


def test_a_caption_in_another_encoding_is_counted_and_named(tmp_path, capsys):
    for i in range(3):
        paint(tmp_path / f"{i}.png", (i, 0, 0))
        (tmp_path / f"{i}.txt").write_text("a cat")
    (tmp_path / "2.txt").write_bytes("ein Bär".encode("latin-1"))
    assert everything(tmp_path) == {"0.png": "a cat", "1.png": "a cat"}
    assert "1 pictures" in (warning := capsys.readouterr().err)
    assert "2.txt is not UTF-8" in warning


def test_pictures_without_captions_are_all_used(tmp_path, capsys):
    for i in range(6):
        paint(tmp_path / f"{i}.png", (i, 0, 0))
    (tmp_path / "0.txt").write_text("not read")
    assert everything(tmp_path, captions="none") == {f"{i}.png": "" for i in range(6)}
    assert "warning" not in capsys.readouterr().err


def test_a_flat_folder_with_a_template_is_not_advised_to_give_a_template(tmp_path):
    paint(tmp_path / "a.png")
    with pytest.raises(ValueError, match="are in no class folder") as error:
        Folder(str(tmp_path), 8, "train", "a photo of *")
    assert "give data.template" not in str(error.value)
    assert "folder_unconditional" in str(error.value)


def test_faults_name_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        Folder(str(tmp_path / "nowhere"), 8, "train")
    with pytest.raises(ValueError, match="there is no picture below it"):
        Folder(str(tmp_path), 8, "train")
    with pytest.raises(ValueError, match="captions=words is neither"):
        Folder(str(tmp_path), 8, "train", captions="words")
    with pytest.raises(ValueError, match="must contain a"):
        Folder(str(tmp_path), 8, "train", template="a photo")
    paint(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"none of its 1 pictures has a caption; add metadata\.jsonl"):
        Folder(str(tmp_path), 8, "train")
    (tmp_path / "metadata.jsonl").write_text('{"file": "a.png"}')
    selected.cache_clear()
    with pytest.raises(ValueError, match="line 1"):
        Folder(str(tmp_path), 8, "train")
