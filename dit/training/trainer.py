"""Converts the config of `trainer` for lightning.Trainer: all options count optimizer steps, and data is endless."""

from __future__ import annotations

import math
from typing import Any

STEPS = "training ends after trainer.max_steps, trainer.max_epochs or trainer.max_time"
FIXED = "dit sets it itself"
REFUSED = {  # options of lightning.Trainer that would repeat the first batches, or have no effect
    "limit_train_batches": "it would repeat the same first batches; data.module.train_limit=N trains on N pictures",
    "overfit_batches": "it would repeat the same first batches; data.module.train_limit=N trains on N pictures",
    "fast_dev_run": "debug=one_batch runs one step through every part",
    "min_steps": STEPS,
    "min_epochs": STEPS,
    "reload_dataloaders_every_n_epochs": "the data loader never ends and is never recreated",
    "check_val_every_n_epoch": "trainer.val_check_interval=N validates every N optimizer steps",
    "num_sanity_val_steps": "debug=one_batch runs one step through every part",
    "logger": "metrics.csv is always written, and wandb.mode chooses whether Weights & Biases is",
    "callbacks": "name them in conf/callbacks",
    "enable_checkpointing": "callbacks.checkpoints.every=N sets how often they are written",
    "default_root_dir": "run_dir=DIR is the run's directory",
    "plugins": FIXED,
    "use_distributed_sampler": FIXED,
    "enable_model_summary": FIXED,
}


def trainer_options(options: dict[str, Any], pictures: int, batch_size: int) -> dict[str, Any]:
    """Returns the arguments of lightning.Trainer: max_steps is the end of training, and val_check_interval counts
    batches, accumulate_grad_batches per step. `max_time` is handled by `Interruption`.

    pictures: number in an epoch. Raises ValueError for an option that is refused or out of its range.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name in given.keys() & REFUSED.keys():
        raise ValueError(f"trainer.{name}={given[name]} cannot be set: {REFUSED[name]}")
    given.pop("max_time", None)
    parts = _whole(given, "accumulate_grad_batches", 1)
    given["max_steps"] = steps_of(given, pictures, batch_size)
    given.pop("max_epochs", None)
    if isinstance(given.get("val_check_interval"), int | float):
        given["val_check_interval"] = _whole(given, "val_check_interval", 1) * parts
    return given


def steps_of(trainer: dict[str, Any], pictures: int, batch_size: int) -> int:
    """Returns the optimizer steps of a whole run: the smaller of max_steps and max_epochs times the batches of an
    epoch, rounded up. Raises ValueError if neither is given."""
    ends = []
    if trainer.get("max_steps", -1) != -1:  # -1 is Lightning's value for no limit
        ends.append(_whole(trainer, "max_steps", 1))
    if trainer.get("max_epochs", -1) != -1:
        ends.append(_whole(trainer, "max_epochs", 1) * math.ceil(pictures / batch_size))
    if not ends:
        raise ValueError("trainer.max_steps and trainer.max_epochs are both unset; give one of them")
    return min(ends)


def _whole(options: dict[str, Any], name: str, least: int) -> int:
    value = options.get(name, least)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"trainer.{name}={value} must be a whole number of at least {least}")
    return value
