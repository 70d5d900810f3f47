"""What is installed: every package, the configs, and verbs that run from any folder."""

import os
import shutil
import subprocess
import sys
import tomllib

import pytest

from .conftest import ROOT


def test_every_package_is_listed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {file.parent.relative_to(ROOT) for file in (ROOT / "dit").rglob("*.py")}
    found = {".".join(folder.parts) for folder in folders}
    assert set(listed) == found | {"dit.conf"}


@pytest.mark.slow
def test_installed_verbs_run_from_elsewhere(tmp_path):
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "cache", "__pycache__"))
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True)
    assert len(list((site / "dit" / "conf").rglob("*.yaml"))) == len(list((ROOT / "conf").rglob("*.yaml")))
    shutil.rmtree(source)
    env = os.environ | {"PYTHONPATH": str(site)}
    words = [sys.executable, "-m", "dit.cli.train", "debug=one_batch", "data.module.train.count=16"]
    words += ["data.module.val.count=8", "metric=run", "closing_prompts=1", "trainer.accelerator=cpu"]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "shapes").is_dir()
