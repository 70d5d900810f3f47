"""Text with and without a byte order mark, and locks that end with their process."""

import fcntl
import subprocess
import sys

import pytest

from dit.files import is_locked, locked, read_lines, read_text, take, try_lock


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa red cat\r\n")
    assert read_text(tmp_path / "a.txt") == "a red cat\r\n"
    assert read_lines(tmp_path / "a.txt") == ["a red cat", ""]


@pytest.mark.parametrize(
    ("data", "named"), [("été".encode("latin-1"), "Latin-1"), ("a cat".encode("utf-16"), "UTF-16")]
)
def test_another_encoding_is_named(tmp_path, data, named):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(ValueError, match=rf"a\.txt.*{named}"):
        read_text(tmp_path / "a.txt")


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="cannot read"):
        read_text(tmp_path / "none")


def test_only_a_newline_ends_a_line(tmp_path):
    (tmp_path / "a.jsonl").write_text("one\u2028half\x85\nand another", encoding="utf-8")
    assert read_lines(tmp_path / "a.jsonl") == ["one\u2028half\x85", "and another"]


HOLD = "import sys; from dit.files import try_lock; held = try_lock(sys.argv[1]); print(held is not None, flush=True); input()"


def test_a_lock_is_held_by_one_process_and_ends_with_it(tmp_path):
    file = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(file)], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout.readline() == "True\n"
        assert try_lock(file) is None
        other.kill()
    held = try_lock(file)
    assert held is not None
    assert try_lock(file) is None, "a second lock in the same process"
    held.close()
    try_lock(file).close()


@pytest.mark.parametrize(("data", "message"), [
    (b"[" * 100_000, "nested too deeply"),
    (b'{"a": NaN}', "NaN is not a JSON number"),
    (b'{"a": 1', "is not JSON"),
    (b"\xff\xfe{\x00", "UTF-16"),
    (b'{"a": "\xe9"}', "not UTF-8"),
])  # fmt: skip
def test_json_that_is_none_is_refused_in_one_line(data, message, tmp_path):
    from dit.files import read_json

    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        read_json(tmp_path / "a.json")
    assert "a.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_json_with_a_byte_order_mark_and_scores_that_are_none(tmp_path):
    from dit.files import read_json

    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": [NaN, 1]}')
    value = read_json(tmp_path / "a.json", nan=True)["a"]
    assert value[0] != value[0]
    assert value[1] == 1


def test_a_lock_whose_file_its_last_holder_removes_meanwhile_is_none(tmp_path, monkeypatch):
    """Two processes could hold it otherwise: one the removed file, one a new file of the same path."""
    path, flock, removals = tmp_path / "lock", fcntl.flock, [True, True]

    def last_holder_ends(file, how):
        if removals:
            removals.pop()
            path.unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", last_holder_ends)
    assert try_lock(path) is None
    with locked(path):
        assert is_locked(path)
    assert not path.exists()


def test_work_is_taken_by_one_and_not_done_again(tmp_path):
    path, written = tmp_path / "lock", []
    assert take(path, lambda: written, lambda: written.append(is_locked(path)))
    assert written == [True]
    assert not take(path, lambda: written, lambda: written.append("again"))
    with locked(path):
        assert not take(path, lambda: False, lambda: written.append("again"))
    assert written == [True]
    assert not path.exists()
