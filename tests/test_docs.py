"""The snippets of docs/ run, from top to bottom of each page, on a tiny run."""

import os
import re
import subprocess
import sys

import pytest

from .conftest import ROOT

DOCS = ROOT / "docs"


def python_blocks(name):
    return re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), re.DOTALL)


@pytest.fixture
def beside_a_run(tiny_run, tmp_path, monkeypatch):
    """A folder that has a run of the name that the pages use."""
    (tmp_path / "RUN").symlink_to(tiny_run)
    monkeypatch.chdir(tmp_path)


def run_all(blocks, name, capsys):
    """Runs blocks of code in one namespace; gives what they print, block by block."""
    namespace, printed = {}, []
    for number, block in enumerate(blocks):
        exec(compile(block, f"{name}, block {number}", "exec"), namespace)
        printed.append(capsys.readouterr().out)
    return namespace, printed


def test_the_python_page(beside_a_run, capsys):
    blocks = python_blocks("python.md")
    names, printed = run_all(blocks, "docs/python.md", capsys)
    assert len(blocks) == 10
    assert "prompt_accuracy" in printed[0]
    assert names["x0"].abs().max() < 1e-5
    assert names["by_object"].images.shape == (4, 3, 32, 64)
    assert names["tokens"].grad.abs().max() > 0
    assert len(names["trajectory"]) == 8


def test_every_link_between_pages_leads_somewhere():
    for page in [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *DOCS.glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_site_is_built_without_a_warning(tmp_path):
    """As `make docs` builds it: every page, and every API page from the docstrings."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == ""
    assert "probability-flow ODE" in (tmp_path / "site" / "api" / "sampler" / "index.html").read_text()
    for page in (tmp_path / "site").rglob("*.html"):
        fetched = re.findall(r'(?:src|<link[^>]*href)="https?://[^"]*', page.read_text())
        assert not fetched, f"{page} fetches {fetched[0]}"


def test_every_room_has_an_api_page():
    pages = "".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    rooms = {path.name for path in (ROOT / "dit").iterdir() if (path / "__init__.py").is_file()} - {"assets", "cli"}
    missing = [room for room in rooms if f"::: dit.{room}" not in pages]
    assert not missing
