"""Several processes of one command."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from dit.cli.processes import run_processes

from ..conftest import ROOT

SECONDS = 60
SLEEPER = (
    "import os, pathlib, time\npathlib.Path(os.environ['LOCAL_RANK']).write_text(str(os.getpid()))\ntime.sleep(100)\n"
)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(holds):
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_sigterm_ends_all_processes(tmp_path):
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    code = "from dit.cli.processes import run_processes; run_processes('sleeper', 2, 'cpu')"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    files = [tmp_path / "0", tmp_path / "1"]
    wait_until(lambda: all(file.is_file() and file.read_text() for file in files))
    children = [int(file.read_text()) for file in files]
    parent.send_signal(signal.SIGTERM)
    try:
        assert parent.wait(SECONDS) == 128 + signal.SIGTERM
        wait_until(lambda: not any(map(alive, children)))
    finally:
        for child in filter(alive, children):
            os.kill(child, signal.SIGKILL)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(ValueError, match="devices=8: this machine has 4 GPUs; give at most 4"):
        run_processes("none", 8, "auto")
