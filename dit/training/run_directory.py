"""Chooses a run's directory, and writes its first files."""

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
from dit.config import OPEN, WITHOUT_EFFECT, has_no_effect, key_of
from dit.distributed import launched_externally
from dit.environment import environment
from dit.files import ELSEWHERE, LOCK, try_lock, write_atomic
from dit.plain_values import ABSENT, flat, plain
from dit.training.checkpoints import newest_run
from dit.training.resume import GROWING, differences

SHARED = "DIT_RUN_DIR"  # passes the directory chosen by rank 0 to the other processes, which Lightning starts


def in_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def sweep_folder() -> Path:
    """Returns Hydra's folder of this job of the sweep: SWEEP/NUMBER."""
    return Path(HydraConfig.get().runtime.output_dir)


def choose(cfg: DictConfig) -> Path:
    """Returns the directory of this run, created and writable. Raises ValueError if that is not possible, or if
    processes were started externally without run_dir."""
    if SHARED in os.environ:
        return Path(os.environ[SHARED])
    if cfg.run_dir is not None:
        return create_folder(Path(cfg.run_dir).absolute())
    if launched_externally() and in_sweep():  # no process has a checkpoint before all have chosen
        return create_folder((cfg.resume == "auto" and earlier_run(cfg)) or sweep_folder())
    if launched_externally():
        raise ValueError("several processes were started externally: give run_dir=DIR so that all use the same one")
    if cfg.resume == "auto":
        found = earlier_run(cfg)
        if found is not None:
            if in_sweep():
                with suppress(OSError):  # Hydra's folder of this job stays empty
                    sweep_folder().rmdir()
                write_atomic(sweep_folder().with_suffix(ELSEWHERE), f"{found}\n")
            return create_folder(found)
    if in_sweep():
        return claim(sweep_folder())
    if cfg.resume not in (None, "auto"):
        resumed = Path(cfg.resume).absolute()
        if resumed.parent.name == "checkpoints":  # a checkpoint, which may be a folder
            return create_folder(resumed.parents[1])
        if resumed.is_dir():
            return create_folder(resumed)
    return claim(Path(cfg.runs_dir).absolute() / cfg.name / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))


def create_folder(folder: Path) -> Path:
    """Creates the directory and returns it. Raises ValueError if it cannot be written."""
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
    """Returns `folder` reserved for this run, or FOLDER_2, FOLDER_3, ... if other runs have reserved it.

    A directory belongs to the run that created checkpoints/ in it: if several try, only one succeeds. (The directory
    itself does not show this, because Hydra creates those of a sweep.)
    """
    for number in itertools.count(1):
        own = create_folder(folder if number == 1 else folder.with_name(f"{folder.name}_{number}"))
        try:
            (own / "checkpoints").mkdir()
        except FileExistsError:
            continue
        return own
    raise AssertionError("there is always another number")


def is_first() -> bool:
    """Returns True on rank 0, also before the processes are connected."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Context in which only the processes of this command train in the directory. Raises ValueError if another command
    trains in it."""
    if SHARED in os.environ or not is_first():
        yield
        return
    lock = try_lock(folder / LOCK)
    if lock is None:
        raise ValueError(f"{folder} is being trained by another process; wait until it ends, or choose another run_dir")
    with lock:
        yield


def earlier_run(cfg: DictConfig) -> Path | None:
    """Returns the run that resume=auto continues, or None. In a sweep: the newest run with exactly this config in this
    or an earlier sweep, finished or not, so that two jobs never share a directory. Otherwise: the newest unfinished run
    of this name without `differences`."""
    if in_sweep():
        return newest_run(sweep_folder().parents[1].glob("*/*"), lambda run: same_config(run, cfg))
    runs, new = (Path(cfg.runs_dir).absolute() / cfg.name).glob("*"), plain(cfg)

    def fits(run: Path) -> bool:
        return not is_finished(run) and (old := config_of(run)) is not None and not differences(reopened(old, new), new)

    return newest_run(runs, fits)


def is_finished(run: Path) -> bool:
    return (run / "summary.json").is_file()


def config_of(run: Path) -> dict[str, Any] | None:
    """Returns the config of a run, or None if it cannot be read."""
    try:
        return read_run_config(run / "config.yaml")
    except ValueError:
        return None


def same_config(run: Path, cfg: DictConfig) -> bool:
    """Returns True if a run was started with this config, apart from the keys in WITHOUT_EFFECT."""
    old, new = config_of(run), plain(cfg)
    if old is None or old.keys() - WITHOUT_EFFECT != new.keys() - WITHOUT_EFFECT:
        return False
    found, current = flat(reopened(old, new)), flat(new)
    names = {name for name in {*found, *current} if not has_no_effect(name)}
    return all(found.get(name, ABSENT) == current.get(name, ABSENT) for name in names)


def reopened(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Returns the config `old` of a run, with null for filled values that are null in `new`, and with the autoencoder
    path of `new` if each run fits its own."""
    found, current = OmegaConf.create(old), OmegaConf.create(new)
    for key in (*OPEN, *GROWING):
        if OmegaConf.select(current, key, default=ABSENT) is None and OmegaConf.select(found, key) is not None:
            OmegaConf.update(found, key, None)
    if new.get("fit_autoencoder") is not None and "path" in old.get("autoencoder", {}):
        found.autoencoder.path = current.autoencoder.path
    container = OmegaConf.to_container(found)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def given() -> dict[str, Any]:
    """Returns the overrides of this command, or of this job of a sweep, and the chosen option of each config group.
    Outside a command, the overrides are None and the options unknown."""
    if not HydraConfig.initialized():
        return {"overrides": None, "choices": {}}
    hydra = HydraConfig.get()
    return {"overrides": list(hydra.overrides.task), "choices": dict(sorted(hydra.runtime.choices.items()))}


def describe(
    folder: Path, config: dict[str, Any], resumed: dict[str, Any] | None = None, data: dict[str, Any] | None = None
) -> None:
    """Writes config.yaml and environment.json, which has the overrides of the command and lists every resumption with
    its checkpoint and the changed values. data: the number of samples and the fingerprint of each split."""
    path = folder / "environment.json"
    try:
        before = json.loads(path.read_text()) if resumed is not None else {}
        history, first = before["resumed"] if before else [], before.get("overrides") or []
    except (OSError, ValueError, KeyError, TypeError):
        history, first = [], []
    command = given()
    if command["overrides"] is not None:  # those that started the run are valid unless they are given anew
        new = {key_of(word) for word in command["overrides"]}
        command["overrides"] = [*(word for word in first if key_of(word) not in new), *command["overrides"]]
    history = [*history, resumed] if resumed is not None else history
    write_atomic(folder / "config.yaml", OmegaConf.to_yaml(config))
    content = environment() | command | {"resumed": history, "data": data or {}}
    write_atomic(path, json.dumps(content, indent=2) + "\n")


def overrides_of(folder: Path) -> list[str]:
    """Returns the overrides that the run was started with; none for a run from Python."""
    return json.loads((folder / "environment.json").read_text())["overrides"] or []
