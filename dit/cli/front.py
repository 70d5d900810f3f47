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
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    OverrideParseException,
)
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dit.errors import first_line

CONF = Path(__file__).parents[2] / "conf"


def nearest(word: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' for the closest of the known names, else the list of them where it is short."""
    known = sorted(set(known))
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" There are: {', '.join(known)}." if len(known) <= 40 else ""


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


def parameter_of(node: DictConfig, name: str) -> inspect.Parameter | None:
    """What the target of a config node says of an argument of this name, None where it takes none."""
    target = node.get("_target_")
    return None if target is None else inspect.signature(get_object(target)).parameters.get(name)


def fault_of_key(cfg: DictConfig, override: Override, groups: list[str]) -> str | None:
    key = override.key_or_group
    parent_name, _, name = key.rpartition(".")
    parent = OmegaConf.select(cfg, parent_name) if parent_name else cfg
    if isinstance(parent, DictConfig) and name in parent.keys():  # noqa: SIM118  (`in` denies keys that are still ???)
        if override.is_add() and not override.is_force_add():
            return f"+{key}: the key is there already; leave out the +"
        return fault_of_type(parent, name, override)
    if override.is_add() and isinstance(parent, DictConfig) and parameter_of(parent, name):
        return None
    return f"{key}: there is no such key.{nearest(key, [*keys_of(cfg), *groups])}"


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
        if number and isinstance(old, int) and isinstance(value, float):
            taken = parameter_of(parent, name)  # what counts things here may elsewhere be a share of them
            if taken is None or "float" not in str(taken.annotation):
                return f"{override.key_or_group}={value}: expected a whole number such as {old}"
    return None


def first_fault(config_name: str, words: list[str], config_dir: str | None = None) -> str | None:
    """What is wrong with command-line overrides, in one line, or None. `config_dir` is searched before conf/."""
    try:
        overrides = OverridesParser.create().parse_overrides(words)
    except OverrideParseException as error:
        return f"{error.override}: not of the form key=value"
    if config_dir is not None and not Path(config_dir).is_dir():
        return f"--config-dir {config_dir}: no such folder"
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        front = GlobalHydra.instance().hydra
        assert front is not None
        folders = [CONF]
        if config_dir is not None:
            folders.append(Path(config_dir).absolute())
            search = front.config_loader.get_search_path()
            search.prepend("command-line", f"file://{folders[-1]}", SearchPathQuery(provider="main"))
            front.config_loader = ConfigLoaderImpl(search)
        choices, values = [], []
        for override in overrides:
            options = front.config_loader.get_group_options(override.key_or_group)
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
        groups = [inner.name for folder in folders for inner in folder.iterdir() if inner.is_dir()]
        faults = (fault_of_key(cfg, override, groups) for override in values)
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
    args = get_args()  # as Hydra will read them
    asks = args.help or args.hydra_help or args.info or args.cfg or args.shell_completion
    if not asks and args.config_path is None:  # with another conf/ altogether, there is nothing to check by
        fault = first_fault(args.config_name or config_name, args.overrides, args.config_dir)
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
                known |= TypeError | ImportError
            if os.environ.get("HYDRA_FULL_ERROR") == "1" or not isinstance(cause, known):
                raise
            stop(first_line(cause))

    main()
