"""Records the environment of a result: command, commit of the code, platform and package versions."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "hydra-core",
    "diffusers",
    "open_clip_torch",
    "torchmetrics",
    "numpy",
)


def git_commit() -> str:
    """Returns the commit of the code, with '-dirty' if files differ from it; 'unknown' outside a checkout."""
    root = Path(__file__).parents[1]
    try:
        options = {"cwd": root, "capture_output": True, "text": True, "check": True}
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **options).stdout.strip()  # type: ignore[call-overload]
        changed = subprocess.run(["git", "status", "--porcelain"], **options).stdout  # type: ignore[call-overload]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("-dirty" if changed.strip() else "")


def environment() -> dict[str, Any]:
    """Returns the command, commit, platform and package versions, as written to environment.json and cards."""
    return {
        "command": sys.argv,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
    }
