"""What a result was made with: the command, the commit of the code, the platform and the versions of packages."""

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
    """The commit of the code, with a mark where files differ from it; 'unknown' outside a checkout."""
    root = Path(__file__).parents[1]
    try:
        ask = {"cwd": root, "capture_output": True, "text": True, "check": True}
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **ask).stdout.strip()  # type: ignore[call-overload]
        changed = subprocess.run(["git", "status", "--porcelain"], **ask).stdout.strip()  # type: ignore[call-overload]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("-dirty" if changed else "")


def environment() -> dict[str, Any]:
    return {
        "command": sys.argv,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
    }
