"""What is installed: every package, the configs, and verbs that run from any folder."""

import os
import platform
import shutil
import subprocess
import sys
import tomllib

import pytest

import dit
from dit.cli import commands

from .conftest import ROOT


def test_every_package_is_listed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {file.parent.relative_to(ROOT) for file in (ROOT / "dit").rglob("*.py")}
    found = {".".join(folder.parts) for folder in folders}
    assert set(listed) == found | {"dit.conf"}


def test_every_file_of_a_package_that_is_no_python_is_package_data():
    """A template or a yaml that no pattern matches would be missing in an installed dit."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packages = {name: ROOT.joinpath(*name.split(".")) for name in patterns if name != "dit.conf"}
    shipped = {file for name, folder in packages.items() for pattern in patterns[name] for file in folder.glob(pattern)}
    others = {file for file in (ROOT / "dit").rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")}
    assert ROOT / "dit" / "evaluation" / "report.html.j2" in others
    assert others <= shipped


def test_every_command_is_listed():
    """A verb that has a command line is a command of an installed dit."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    verbs = [
        file.stem for file in (ROOT / "dit" / "cli").glob("*.py")
        if '__name__ == "__main__"' in file.read_text() and file.stem != "first_run"
    ]  # fmt: skip
    assert scripts == {f"dit-{verb}": f"dit.cli.commands:{verb}" for verb in sorted(verbs)}
    for verb in verbs:
        assert callable(getattr(commands, verb))


@pytest.mark.parametrize(("held", "again"), [(platform.python_version(), False), ("3.10.0", True)])
def test_an_environment_of_another_python_is_made_anew(tmp_path, held, again):
    """`make test PYTHON=...` in a checkout that has an environment runs the Python that it names."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(f"#!/bin/sh\necho Python {held}\n")
    (tmp_path / "bin" / "python").chmod(0o755)
    (tmp_path / ".ready").touch()
    command = ["make", "--dry-run", "-o", "pyproject.toml", "test", f"VENV={tmp_path}"]
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "MAKEFLAGS", "MAKELEVEL")}

    def planned(*words):
        return subprocess.run([*command, *words], cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout

    assert (f"{sys.executable} -m venv --clear {tmp_path}" in planned(f"PYTHON={sys.executable}")) is again
    assert "-m venv" not in planned()  # without PYTHON=... the environment stays


@pytest.mark.slow
def test_an_installed_wheel_trains_and_generates_from_elsewhere(tmp_path):
    source, wheels, site = tmp_path / "source", tmp_path / "wheels", tmp_path / "site"
    outside = {".git", ".venv", "runs", "cache"}  # at the top; conf/cache is a group of the config
    shutil.copytree(ROOT, source, ignore=lambda at, _: outside if at == str(ROOT) else {"__pycache__"})
    pip, offline = [sys.executable, "-m", "pip"], ["--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "wheel", *offline, "--no-build-isolation", "-w", str(wheels), str(source)], check=True)
    (wheel,) = wheels.glob("*.whl")
    assert wheel.name == f"dit-{dit.__version__}-py3-none-any.whl"
    subprocess.run([*pip, "install", *offline, "--target", str(site), str(wheel)], check=True)
    shutil.rmtree(source)
    assert len(list((site / "dit" / "conf").rglob("*.yaml"))) == len(list((ROOT / "conf").rglob("*.yaml")))
    env = os.environ | {"PYTHONPATH": str(site)}

    def command(name, *words):
        command = [sys.executable, str(site / "bin" / name), *words]  # for pip writes the path of its own Python there
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    tiny = [
        "debug=one_batch",
        "data.module.train.count=16",
        "data.module.val.count=8",
        "metric=run",
        "closing_prompts=1",
    ]
    run = command("dit-train", *tiny, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "batch_size=4")
    assert run.startswith(str(tmp_path / "runs" / "shapes"))
    out = command("dit-generate", f"ckpt={run}", "prompts=[a red star]", "recipe.steps=2")
    assert (tmp_path / "samples" / "prompt_0_seed_0.png").is_file()
    assert out == str(tmp_path / "samples")
    for name, line in {"dit-train": "  dit-train resume=auto ", "dit-compare": "usage: dit-compare "}.items():
        asked = [sys.executable, str(site / "bin" / name), "--help"]
        assert line in subprocess.run(asked, env=env, capture_output=True, text=True, check=True).stdout
