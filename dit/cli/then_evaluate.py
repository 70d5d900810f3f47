"""The sweep that follows a training in the same command: `then_evaluate` of train.py holds settings of evaluate.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dit.components import composed
from dit.config_check import check_config
from dit.distributed import launched_externally
from dit.errors import first_line, nearest
from dit.files import CONF
from dit.plain_values import plain, targets_in
from dit.training import run_directory


def sweep_of(cfg: DictConfig) -> DictConfig | None:
    """Returns the config of evaluate.py that `then_evaluate` describes, without the run; None if it is null.

    A name of an option chooses it, as sampler=heun; all else are values. By default, the sampler, the steps, the cache
    and W&B are those of the training, the metrics those of the run, and the rest the defaults of evaluate.py. Raises
    ValueError, before the training, for an unknown key, a wrong value, and weights of metrics that cannot be loaded."""
    if cfg.get("then_evaluate") is None:
        return None
    settings = plain(cfg.then_evaluate)
    if targets_in(settings):
        raise ValueError("then_evaluate: choose parts by their names, as then_evaluate.sampler=heun, not by _target_")
    ours = {name: plain(cfg)[name] for name in ("sampler", "wandb", "cache_dir", "trust") if name in cfg}
    options = {key: value for key, value in settings.items() if is_option(key, value)}
    found = composed("evaluate", [f"{key}={listed_word(value)}" for key, value in options.items()])
    values = {
        key: value for key, value in {**ours, "steps": cfg.recipe.steps, **settings}.items() if key not in options
    }
    for key, value in values.items():
        if key not in found:
            raise ValueError(f"then_evaluate.{key}: evaluate.py has no such key.{nearest(key, map(str, found))}")
        try:
            OmegaConf.update(found, key, value, merge=key != "sampler")
        except OmegaConfBaseException as error:
            raise ValueError(f"then_evaluate.{key}: {first_line(error)}") from None
    check_config("evaluate", plain(found), trusted=True)
    if run_directory.is_first():
        instantiate(found.metric or cfg.metric)
    return found


def listed_word(value: str | list[str]) -> str:
    """Returns a name, or names as a list, in the syntax of the command line."""
    return value if isinstance(value, str) else f"[{','.join(value)}]"


def is_option(key: str, value: Any) -> bool:
    """Returns whether a value is the name of an option of a config group, or a list of names."""
    values = value if isinstance(value, list) else [value]
    return (CONF / key).is_dir() and bool(values) and all(isinstance(name, str) for name in values)


def evaluate_run(sweep: DictConfig, run: Path) -> None:
    """Runs the sweep on a finished run: in the processes that were started as several, or else in the first one."""
    if launched_externally() or run_directory.is_first():
        from dit.cli.evaluate import evaluate

        OmegaConf.update(sweep, "ckpt", str(run))
        evaluate(sweep)
