"""A run's directory: where it lies, and what is written into it before the first step."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from dit.checkpoints.native import read_run_config
from dit.distributed import launched_externally
from dit.environment import environment
from dit.files import try_lock, write_atomic
from dit.plain_values import plain
from dit.training.checkpoints import newest_run
from dit.training.resume import GROWING, differences

SHARED = "DIT_RUN_DIR"  # tells the other processes of a run, which Lightning starts, what the first has chosen
PLACES = {
    "resume",
    "resume_override",
    "trust",
    "run_dir",
    "runs_dir",
    "cache_dir",
    "wandb",
}  # where a run lies, not what it is
ABSENT = object()
OPEN = (  # what a config may leave null for `dit.training.budget` to fill
    *("backbone.width", "backbone.depth", "backbone.heads", "optimizer.lr"),
    *("trainer.max_steps", "trainer.val_check_interval", "lr_schedule.warmup", "callbacks.ema.decay"),
)


def in_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def sweep_folder() -> Path:
    """Where Hydra puts this job of the sweep: SWEEP/NUMBER."""
    return Path(HydraConfig.get().runtime.output_dir)


def choose(cfg: DictConfig) -> Path:
    """The directory of this run, there and writable. Raises ValueError when it cannot be, or when processes started by
    hand could not agree on one."""
    if SHARED in os.environ:
        return Path(os.environ[SHARED])
    if cfg.run_dir is not None:
        return make(Path(cfg.run_dir).absolute())
    if launched_externally():
        raise ValueError("several processes were started from outside: give run_dir=DIR so that they agree on one")
    if cfg.resume == "auto":
        found = earlier_run(cfg)
        if found is not None:
            if in_sweep():
                with suppress(OSError):  # what Hydra has made for this job stays empty
                    sweep_folder().rmdir()
            return make(found)
    if in_sweep():
        return claim(sweep_folder())
    if cfg.resume not in (None, "auto"):
        resumed = Path(cfg.resume).absolute()
        if resumed.is_dir():
            return make(resumed)
        if resumed.parent.name == "checkpoints":
            return make(resumed.parents[1])
    return claim(Path(cfg.runs_dir).absolute() / cfg.name / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))


def make(folder: Path) -> Path:
    """Raises ValueError when the directory cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"cannot write the run directory {folder}: {error.strerror}; choose another with run_dir=DIR"
        ) from None
    if not os.access(folder, os.W_OK):
        raise ValueError(f"cannot write into the run directory {folder}; choose another with run_dir=DIR")
    return folder


def claim(folder: Path) -> Path:
    """`folder` for this run alone, or FOLDER_2, FOLDER_3 and so on where other runs were quicker.

    A directory is the run's that made the checkpoints/ in it: of several that try, one succeeds. (The directory itself
    tells nothing, for Hydra makes those of a sweep.)
    """
    for number in itertools.count(1):
        own = make(folder if number == 1 else folder.with_name(f"{folder.name}_{number}"))
        try:
            (own / "checkpoints").mkdir()
        except FileExistsError:
            continue
        return own
    raise AssertionError("there is always another number")


def is_first() -> bool:
    """Whether this is the first process of the run, known also before they are connected."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, this command alone trains in the directory; its other processes are let in. Raises ValueError where
    another command does."""
    if SHARED in os.environ or not is_first():
        yield
        return
    lock = try_lock(folder / ".lock")
    if lock is None:
        raise ValueError(f"{folder} is being trained by another process; wait for its end, or choose another run_dir")
    with lock:
        yield


def earlier_run(cfg: DictConfig) -> Path | None:
    """What resume=auto goes on with. In a sweep: the newest run of just this config in this or an earlier sweep, be it
    finished or not, so that no two jobs ever meet in one. Elsewhere: the newest unfinished run of this name that
    differs in nothing that shapes it."""
    if in_sweep():
        return newest_run(sweep_folder().parents[1].glob("*/*"), lambda run: same_config(run, cfg))
    runs, new = (Path(cfg.runs_dir).absolute() / cfg.name).glob("*"), plain(cfg)

    def fits(run: Path) -> bool:
        return not is_finished(run) and (old := config_of(run)) is not None and not differences(reopened(old, new), new)

    return newest_run(runs, fits)


def is_finished(run: Path) -> bool:
    return (run / "summary.json").is_file()


def config_of(run: Path) -> dict[str, Any] | None:
    """The config that a run was started with, None where it cannot be read."""
    try:
        return read_run_config(run / "config.yaml")
    except ValueError:
        return None


def same_config(run: Path, cfg: DictConfig) -> bool:
    """True where a run was started with this very config. Where it lies and logs is all one."""
    old, new = config_of(run), plain(cfg)
    if old is None or old.keys() - PLACES != new.keys() - PLACES:
        return False
    old = reopened(old, new)
    return all(old[key] == new[key] for key in new.keys() - PLACES)


def reopened(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The config of a run with null where a new one leaves open what the run has filled, and with the new one's
    autoencoder where each run fits its own."""
    found, wanted = OmegaConf.create(old), OmegaConf.create(new)
    for key in (*OPEN, *GROWING):
        if OmegaConf.select(wanted, key, default=ABSENT) is None and OmegaConf.select(found, key) is not None:
            OmegaConf.update(found, key, None)
    if new.get("fit_autoencoder") is not None and "path" in old.get("autoencoder", {}):
        found.autoencoder.path = wanted.autoencoder.path
    plain_again = OmegaConf.to_container(found)
    assert isinstance(plain_again, dict)
    return {str(key): value for key, value in plain_again.items()}


def describe(folder: Path, config: dict[str, Any], resumed: dict[str, Any] | None = None) -> None:
    """Writes config.yaml and environment.json, which lists each time that the run was resumed: from which checkpoint,
    and with which values changed."""
    path = folder / "environment.json"
    try:
        before = json.loads(path.read_text())["resumed"]
    except (OSError, ValueError, KeyError, TypeError):
        before = []
    history = [*before, resumed] if resumed is not None else []
    write_atomic(folder / "config.yaml", OmegaConf.to_yaml(config))
    write_atomic(path, json.dumps(environment() | {"resumed": history}, indent=2) + "\n")
