"""A run's directory: where it lies, and what is written into it before the first step."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from dit.files import write_atomic
from dit.training.checkpoints import unfinished_run

SHARED = "DIT_RUN_DIR"  # tells the other processes of a run, which Lightning starts, what the first has chosen
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


def in_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def choose(cfg: DictConfig) -> Path:
    """The directory of this run. Raises ValueError when processes started by hand could not agree on one."""
    if SHARED in os.environ:
        return Path(os.environ[SHARED])
    if cfg.run_dir is not None:
        return Path(cfg.run_dir).absolute()
    if in_sweep():
        return Path(HydraConfig.get().runtime.output_dir)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("several processes were started from outside: give run_dir=DIR so that they agree on one")
    runs = Path(cfg.runs_dir).absolute() / cfg.name
    if cfg.resume not in (None, "auto"):
        resumed = Path(cfg.resume).absolute()
        if resumed.is_dir():
            return resumed
        if resumed.parent.name == "checkpoints":
            return resumed.parents[1]
    if cfg.resume == "auto":
        found = unfinished_run(runs, lambda run: same_training(run, cfg))
        if found is not None:
            return found
    start = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    numbered = (runs / (start if n == 0 else f"{start}_{n}") for n in range(1000))
    return next(folder for folder in numbered if not folder.exists())


def same_training(run: Path, cfg: DictConfig) -> bool:
    """True where a run's config asks for the same training as this one: another seed, say, is another run."""
    elsewhere = {"resume", "run_dir", "runs_dir", "cache_dir", "wandb", "trainer", "callbacks", "text_encoder"}
    try:
        old = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    except (OSError, YAMLError):
        return False
    new = plain(cfg)
    return isinstance(old, dict) and all(old.get(key) == new[key] for key in new.keys() - elsewhere)


def make(folder: Path) -> None:
    """Raises ValueError when the directory cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"cannot write the run directory {folder}: {error.strerror}; choose another with run_dir=DIR"
        ) from None
    if not os.access(folder, os.W_OK):
        raise ValueError(f"cannot write into the run directory {folder}; choose another with run_dir=DIR")


def git_commit() -> str:
    """The commit of the code, with a mark where files differ from it; 'unknown' outside a checkout."""
    root = Path(__file__).parents[2]
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


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config in plain containers, which a checkpoint can hold."""
    resolved = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def describe(folder: Path, config: dict[str, Any]) -> None:
    """Writes config.yaml and environment.json."""
    write_atomic(folder / "config.yaml", OmegaConf.to_yaml(config))
    write_atomic(folder / "environment.json", json.dumps(environment(), indent=2) + "\n")
