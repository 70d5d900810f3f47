"""The front doors' shared part: overrides are checked before anything heavy is imported, and what a user got wrong ends
in one line on stderr. Set HYDRA_FULL_ERROR=1 to see the traceback behind that line."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

CONF = Path(__file__).parents[2] / "conf"
ASKS = {
    "-h",
    "--help",
    "--hydra-help",
    "--version",
    "-i",
    "--info",
    "-c",
    "--cfg",
    "-sc",
    "--shell-completion",
}


def nearest(word: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' for the closest of the known names, else the list of them where it is short."""
    known = sorted(set(known))
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" There are: {', '.join(known)}." if len(known) <= 40 else ""


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def groups() -> list[str]:
    return [folder.name for folder in CONF.iterdir() if folder.is_dir()]


def keys_of(node: Any, prefix: str = "") -> list[str]:
    """Every dotted key below a config node."""
    if not isinstance(node, DictConfig):
        return []
    found = []
    for key in map(str, node):
        name = f"{prefix}{key}"
        child = None if OmegaConf.is_interpolation(node, key) or OmegaConf.is_missing(node, key) else node[key]
        found += [name, *keys_of(child, f"{name}.")]
    return found


def chosen(override: Override) -> list[Any]:
    """The value or values of an override, each of them where it sweeps."""
    value: Any = list(override.sweep_iterator()) if override.is_sweep_override() else override.value()
    return value if isinstance(value, list) else [value]


def fault_of_option(group: str, override: Override, options: list[str]) -> str | None:
    for option in chosen(override):
        if option is not None and str(option) not in options:
            return f"{group}={option}: there is no such {group}.{nearest(str(option), options)}"
    return None


def accepts(node: DictConfig, name: str) -> bool:
    """True when the target of a config node takes an argument of this name."""
    module, _, attribute = str(node.get("_target_", "")).rpartition(".")
    if not module:
        return False
    parameters = inspect.signature(getattr(importlib.import_module(module), attribute)).parameters
    return name in parameters


def fault_of_key(cfg: DictConfig, override: Override) -> str | None:
    key = override.key_or_group
    parent_name, _, name = key.rpartition(".")
    parent = OmegaConf.select(cfg, parent_name) if parent_name else cfg
    if isinstance(parent, DictConfig) and name in parent.keys():  # noqa: SIM118  (`in` denies keys that are still ???)
        return fault_of_type(parent, name, override)
    if override.is_add() and isinstance(parent, DictConfig) and accepts(parent, name):
        return None
    return f"{key}: there is no such key.{nearest(key, [*keys_of(cfg), *groups()])}"


def fault_of_type(parent: DictConfig, name: str, override: Override) -> str | None:
    if OmegaConf.is_missing(parent, name) or override.is_delete():
        return None
    old = parent[name]
    number = isinstance(old, int | float) and not isinstance(old, bool)
    for value in chosen(override):
        if number and (isinstance(value, bool) or (isinstance(value, str) and not value.startswith("${"))):
            return f"{override.key_or_group}={value}: expected a number such as {old}"
        if isinstance(old, bool) and not isinstance(value, bool) and not str(value).startswith("${"):
            return f"{override.key_or_group}={value}: expected true or false"
    return None


def first_fault(config_name: str, words: list[str]) -> str | None:
    """What is wrong with command-line overrides, in one line, or None."""
    try:
        overrides = OverridesParser.create().parse_overrides(words)
    except OverrideParseException as error:
        return f"{error.override}: not of the form key=value"
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        choices, values = [], []
        for override in overrides:
            options = loader.get_group_options(override.key_or_group)
            if options:
                fault = fault_of_option(override.key_or_group, override, options)
                if fault:
                    return fault
                first = chosen(override)[0]
                if override.is_sweep_override():
                    choices.append(f"{override.key_or_group}={first}")
                else:
                    choices.append(str(override.input_line))
            elif not override.key_or_group.startswith("hydra"):
                values.append(override)
        try:
            cfg = hydra.compose(config_name, overrides=choices)
        except (ConfigCompositionException, HydraException, OmegaConfBaseException) as error:
            return first_line(error)
        faults = (fault_of_key(cfg, override) for override in values)
        return next((fault for fault in faults if fault), None)


def cause_of(error: BaseException) -> BaseException:
    """The error inside Hydra's wrapping."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def lightning_refusal() -> type[Exception]:
    """What Lightning raises for a machine or an option that it cannot serve. Imported only where something failed."""
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    return MisconfigurationException


def stop(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def front_door(config_name: str, job: str) -> None:
    """Runs `module:function` on the composed config."""
    if not ASKS & set(sys.argv[1:]):
        words = [word for word in sys.argv[1:] if not word.startswith("-")]
        fault = first_fault(config_name, words)
        if fault:
            stop(fault)

    @hydra.main(config_path=str(CONF), config_name=config_name, version_base="1.3")
    def main(cfg: DictConfig) -> None:
        module, function = job.split(":")
        try:
            getattr(importlib.import_module(module), function)(cfg)
        except Exception as error:
            cause = cause_of(error)
            known = ValueError | OSError | OmegaConfBaseException | lightning_refusal()
            if isinstance(error, InstantiationException):
                known |= TypeError
            if os.environ.get("HYDRA_FULL_ERROR") == "1" or not isinstance(cause, known):
                raise
            stop(first_line(cause))

    main()
