"""The snippets of docs/ run, from top to bottom of each page, on a tiny run."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT, TINY
from .parts import PAGE, files_of, write_files

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


def notebook_cells():
    return [
        cell for cell in json.loads((DOCS / "default_run.ipynb").read_text())["cells"] if cell["cell_type"] == "code"
    ]


def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    """Its cells on a tiny run, from its training command to its scores."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MPLBACKEND", "agg")
    first, *cells = ["".join(cell["source"]) for cell in notebook_cells()]
    small = [*TINY, "callbacks.previews=null", "data.module.unseen.count=64", f"run_dir={tmp_path / 'run'}"]
    _, printed = run_all([first, f"overrides = {small}", *cells], "docs/default_run.ipynb", capsys)
    assert "prompt_accuracy" in printed[2]
    assert len(re.findall(r"guidance \d\.0: 0\.\d{3}", printed[-1])) == 3


def test_the_notebook_shows_its_results():
    outputs = [output for cell in notebook_cells() for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert len([output for output in outputs if "image/png" in output.get("data", {})]) == 4
    text = "".join("".join(output.get("text", [])) for output in outputs)
    assert re.search(r'"prompt_accuracy": 0\.9', text)  # that of the default run


@pytest.mark.slow
def test_the_parts_of_the_extending_page_train_and_are_scored(tmp_path):
    """The page's own files and commands, in a folder of their own."""
    write_files(PAGE, tmp_path)
    commands = re.findall(r"^python (-m dit\.cli\.\w+ .*)$", PAGE.read_text(), re.MULTILINE)
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "WANDB_MODE": "disabled"}

    def run(words):
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=env, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    train, evaluate = (shlex.split(words) for words in commands)
    status, printed, errors = run([*train, "trainer.accelerator=cpu"])
    assert status == 0, errors
    folder = Path(printed.splitlines()[-1])
    assert "train/gradient_norm" in (folder / "metrics.csv").read_text()
    (tmp_path / "RUN").symlink_to(folder)
    status, _, errors = run([word for word in evaluate if not word.startswith("trust=")])
    assert status == 2
    assert "mypackage" in errors
    assert "trust=mypackage" in errors
    status, printed, errors = run([*evaluate, "n=8"])
    assert status == 0, errors
    cards = json.loads((Path(printed.splitlines()[-1]) / "results.json").read_text())["cards"]
    assert len(cards) == 6  # two numbers of steps, three guidance scales
    assert all(0 < card["scores"]["redness"] < 1 for card in cards)


def test_every_kind_of_part_is_shown():
    kinds = {Path(name).parts[1] for name in files_of(PAGE) if name.startswith("myconf")}
    assert kinds == {"sampler", "guidance", "objective", "metric", "data", "callbacks", "backbone", "experiment"}


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
    samplers = (tmp_path / "site" / "api" / "sampler" / "index.html").read_text()
    assert "probability-flow ODE" in samplers
    assert re.search(r"Dopri5</span>.{,20}\(.{,2000}sigma_min", samplers, re.DOTALL)  # the arguments of a class
    for page in (tmp_path / "site").rglob("*.html"):
        fetched = re.findall(r'(?:src|<link[^>]*href)="https?://[^"]*', page.read_text())
        assert not fetched, f"{page} fetches {fetched[0]}"


def test_every_room_has_an_api_page():
    pages = "".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    rooms = {path.name for path in (ROOT / "dit").iterdir() if (path / "__init__.py").is_file()} - {"assets", "cli"}
    missing = [room for room in rooms if f"::: dit.{room}" not in pages]
    assert not missing
