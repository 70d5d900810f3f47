"""A digest of code follows what the code does."""

import ast
import shutil
from pathlib import Path

import pytest

import dit.code_digest as module
from dit.code_digest import ROOT, code_digest, files_of
from dit.evaluation.sweep import RESULT_CODE
from dit.generation.model import CODE as PICTURE_CODE
from dit.scoring.references import SCORING_CODE
from dit.training.fitted_autoencoder import CODE as FIT_CODE

# What reads, writes, checks and draws, and decides no number.
NO_NUMBERS = (
    *(
        "annotations",
        "assets",
        "code_digest",
        "config",
        "cost",
        "config_generation",
        "places",
        "config_check",
        "environment",
        "errors",
        "files",
    ),
    *("plain_values", "sample_grid", "trust", "components", "versions", "devices"),
    *("evaluation/card", "evaluation/run_settings", "evaluation/results"),
)

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


LISTS = {"results": RESULT_CODE, "scores": SCORING_CODE, "fitted autoencoder": FIT_CODE, "pictures": PICTURE_CODE}


@pytest.mark.parametrize("names", LISTS.values(), ids=LISTS)
def test_every_listed_name_is_a_part_of_dit(names):
    for name in names:
        files = files_of(name)
        assert files, f"{name} holds no code"
        assert all(file.is_file() for file in files), name


def imported_files(file: Path) -> set[Path]:
    """The files of dit that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "dit":
            base = ROOT.parent.joinpath(*node.module.split("."))
            found |= {base, *(base / alias.name for alias in node.names)}
    return {path.with_suffix(".py") for path in found if path.with_suffix(".py").is_file()}


@pytest.mark.parametrize("names", [RESULT_CODE, PICTURE_CODE], ids=["results", "pictures"])
def test_all_code_that_decides_results_is_in_their_digest(names):
    """Whatever the listed code imports from dit is listed too, unless it decides no number."""
    listed = {file for name in names for file in files_of(name)}
    exempt = {file for name in NO_NUMBERS for file in files_of(name)}
    assert not listed & exempt
    assert {file for part in listed for file in imported_files(part)} <= listed | exempt
