"""A digest of code follows what the code does."""

import shutil

import dit.code_digest as module
from dit.code_digest import code_digest

SOURCE = '"""Doc."""\n\n\ndef f(x):\n    """Doc."""\n    return x + 1\n'


def digest(tmp_path, monkeypatch, source):
    shutil.rmtree(tmp_path / "room", ignore_errors=True)
    (tmp_path / "room").mkdir()
    (tmp_path / "room/a.py").write_text(source)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    code_digest.cache_clear()
    return code_digest("room")


def test_comments_and_docstrings_change_nothing_and_numbers_do(tmp_path, monkeypatch):
    first = digest(tmp_path, monkeypatch, SOURCE)
    assert digest(tmp_path, monkeypatch, SOURCE.replace("Doc.", "Other.").replace("+ 1", "+  1  # why")) == first
    assert digest(tmp_path, monkeypatch, SOURCE.replace("+ 1", "+ 2")) != first
    code_digest.cache_clear()


def test_a_file_and_a_package_are_rooms():
    assert code_digest("pipeline") != code_digest("diffusion") != code_digest("diffusion", "pipeline")
