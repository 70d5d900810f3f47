"""The common start of all commands: checks overrides before slow imports, and reports user errors in one line on
stderr. HYDRA_FULL_ERROR=1 prints the traceback instead."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args, get_args_parser
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
from hydra.experimental.callback import Callback
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dit.cli.quoting import fault_of_word, note_of_commas, quoted
from dit.components import named_extractors
from dit.config_check import check_config, check_key
from dit.errors import first_line, nearest, some
from dit.files import CONF
from dit.plain_values import plain
from dit.versions import renamed

ELSEWHERE = {"model": "backbone", "network": "backbone", "vae": "autoencoder"}  # what other projects call our groups


def keys_of(node: Any, prefix: str = "") -> list[str]:
    """Returns every dotted key below a config node."""
    if not isinstance(node, DictConfig):
        return []
    found = []
    for key in map(str, node):
        name = f"{prefix}{key}"
        child = None if OmegaConf.is_interpolation(node, key) or OmegaConf.is_missing(node, key) else node[key]
        found += [name, *keys_of(child, f"{name}.")]
    return found


def chosen(override: Override) -> list[Any]:
    """Returns the values of an override as a list; several if it is a sweep or a list."""
    value: Any = list(override.sweep_iterator()) if override.is_sweep_override() else override.value()
    return value if isinstance(value, list) else [value]


def fault_of_option(group: str, override: Override, options: list[str]) -> str | None:
    """Returns an error message if an option of a config group does not exist, else None."""
    for option in chosen(override):
        if option is not None and str(option) not in options:
            return f"{group}={option}: there is no such {group}.{nearest(str(option), options)}"
    return None


def parameter_of(node: DictConfig, name: str) -> inspect.Parameter | None:
    """Returns the parameter of this name of a config node's target, or None."""
    target = node.get("_target_")
    return None if target is None else inspect.signature(get_object(target)).parameters.get(name)


def fault_of_key(cfg: DictConfig, override: Override, groups: list[str]) -> str | None:
    """Returns an error message if the key of an override does not exist, else None."""
    key = override.key_or_group
    parent_name, _, name = key.rpartition(".")
    parent = OmegaConf.select(cfg, parent_name) if parent_name else cfg
    if isinstance(parent, DictConfig) and name in parent.keys():  # noqa: SIM118  (`in` is False for ??? values)
        if override.is_add() and not override.is_force_add():
            return f"+{key}: the key is there already; leave out the +"
        return None
    if override.is_add() and isinstance(parent, DictConfig) and parameter_of(parent, name):
        return None
    return f"{key}: there is no such key.{renamed(key) or nearest_key(key, keys_of(cfg), groups)}"


def nearest_key(key: str, keys: list[str], groups: list[str]) -> str:
    """Returns ' Did you mean ...?' with the keys that end with this word or have it in their last name, recipe.steps
    and trainer.max_steps for steps, else the closest key or group. Keys of metrics stand only where no other fits."""
    ends = sorted((name for name in keys if name.endswith(f".{key}")), key=len)
    parts = sorted((name for name in keys if key in name.rpartition(".")[2].split("_")), key=len)
    fitting = [name for name in (ELSEWHERE.get(key, ""), *ends, *parts) if name in keys]
    found = dict.fromkeys([name for name in fitting if not name.startswith("metric.")] or ends)
    return f" Did you mean {some(map(repr, found), 3)}?" if found else nearest(key, [*keys, *groups])


def fault_of_value(config_name: str, override: Override, sweeps: bool) -> str | None:
    """Returns an error message if the type of a value does not fit its key, else None; needs no slow imports."""
    if override.is_sweep_override() and not sweeps:
        return (
            f"{override.input_line}: these are several values; add -m to sweep over them, or quote a text that has a "
            f"comma: {quoted(str(override.input_line))}"
        )
    if override.is_delete():
        return None
    for value in override.sweep_iterator() if override.is_sweep_override() else [override.value()]:
        if "${" in str(value):
            continue  # checked when it is resolved
        try:
            check_key(config_name, override.key_or_group, value)
        except ValueError as error:
            return str(error)
    return None


def range_as_list(word: str) -> str:
    """Returns an override whose value is Hydra's range(...) with the list of its numbers; others unchanged."""
    try:
        (override,) = OverridesParser.create().parse_overrides([word])
    except OverrideParseException:
        return word  # `fault_of_word` says why
    if not override.is_range_sweep():
        return word
    return f"{word.partition('=')[0]}=[{','.join(map(str, override.sweep_iterator()))}]"


def fault_of_option_name(words: list[str]) -> str | None:
    """Returns an error message for an unknown option, else None. Hydra would read --experiment as --experimental-rerun
    and the next word as a file."""
    known = get_args_parser()._option_string_actions
    for place, word in enumerate(words):
        name = word.partition("=")[0]
        if not name.startswith("--") or name in known:
            continue
        value = word.partition("=")[2] or next(iter(words[place + 1 : place + 2]), "")
        value = "..." if value.startswith("-") or "=" in value or not value else value
        key = name[2:].replace("-", "_")
        return f"{name}: there is no such option; settings are given without dashes: {key}={value}"
    return None


def fault_of_config_name(name: str, folders: Iterable[Path]) -> str | None:
    if any((folder / f"{name}.yaml").is_file() or (folder / name).is_file() for folder in folders):
        return None
    known = [file.stem for folder in folders for file in folder.glob("*.yaml")]
    if (CONF / "experiment" / f"{name}.yaml").is_file():
        return f"--config-name {name}: this is an experiment; choose it with experiment={name}"
    return f"--config-name {name}: there is no such config.{nearest(name, known)}"


def search_first(found: Hydra, folder: Path) -> None:
    """Makes an initialized Hydra search a folder of configs before conf/, as --config-dir does."""
    search = found.config_loader.get_search_path()
    search.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="main"))
    found.config_loader = ConfigLoaderImpl(search)  # the old one has opened its folders already


def first_fault(
    config_name: str, words: list[str], config_dir: str | None = None, own: str | None = None, sweeps: bool = True
) -> str | None:
    """Returns the first error in command-line overrides, in one line, or None. `config_dir` is searched before conf/.

    own: name of a user's config that replaces the command's. sweeps: True if an override may have several values.
    """
    if fault := next((fault for word in words if (fault := fault_of_word(word))), None):
        return fault
    overrides = OverridesParser.create().parse_overrides(words)
    if config_dir is not None and not Path(config_dir).is_dir():
        return f"--config-dir {config_dir}: no such folder"
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        front = GlobalHydra.instance().hydra
        assert front is not None
        folders = [CONF]
        if config_dir is not None:
            folders.append(Path(config_dir).absolute())
            search_first(front, folders[-1])
        if own is not None and (fault := fault_of_config_name(own, folders)):
            return fault
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
            cfg = hydra.compose(own or config_name, overrides=choices)
        except (ConfigCompositionException, HydraException, OmegaConfBaseException) as error:
            return first_line(error)
        groups = [inner.name for folder in folders for inner in folder.iterdir() if inner.is_dir()]
        for override in values:
            fault = fault_of_key(cfg, override, groups) or fault_of_value(config_name, override, sweeps)
            if fault:
                return fault
    return None


def cause_of(error: BaseException) -> BaseException:
    """Returns the error inside Hydra's InstantiationException."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def lightning_refusal() -> type[Exception]:
    """Returns Lightning's exception for unsupported options or hardware. Imported only after a failure: it is slow."""
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    return MisconfigurationException


def message_of(error: Exception) -> str | None:
    """Returns the line for an error that a user can correct; None for other errors, whose traceback is needed."""
    cause = cause_of(error)
    known = ValueError | OSError | OmegaConfBaseException | InstantiationException | lightning_refusal()
    if isinstance(error, InstantiationException):
        known |= TypeError | ImportError
    if is_memory(cause):
        return f"{first_line(cause)}; less memory is needed with a smaller batch_size, model or picture"
    if isinstance(cause, RuntimeError) and "DataLoader worker" in str(cause):
        return (
            f"a process that loads data ended unexpectedly, as when memory runs out: {first_line(cause)}; fewer "
            f"workers need less memory, and training goes on from its last checkpoint with resume=RUN"
        )
    return first_line(cause) if isinstance(cause, known) else None


def stop(message: str) -> NoReturn:
    """Prints the error and exits with status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def command_name(verb: str) -> str:
    """Returns the command of a verb as this user starts it: dit-VERB where dit is installed, else a checkout's."""
    if Path(sys.argv[0]).name.startswith("dit-"):
        return f"dit-{verb}"
    return f"python {verb}.py" if verb in ("train", "evaluate") else f"python -m dit.cli.{verb}"


def options_of(group: str) -> str:
    """Returns the options of a group of conf/, as a list in a text."""
    return ", ".join(sorted(file.stem for file in (CONF / group).glob("*.yaml")))


# For conf/hydra/help.
OmegaConf.register_new_resolver("command", command_name, replace=True)
OmegaConf.register_new_resolver("options", options_of, replace=True)


class SweepFolder(Callback):
    """Notes the folder of the sweep that this process starts."""

    started: ClassVar[Path | None] = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        SweepFolder.started = Path(config.hydra.sweep.dir).absolute()


def end_sweep(function: str | None) -> None:
    """Calls `module:function` with the folder of the sweep that this process has started."""
    if function is not None and SweepFolder.started is not None:
        called(function)(SweepFolder.started)


def called(function: str) -> Callable[[Any], Any]:
    """Returns the function that `module:function` names."""
    module, _, name = function.partition(":")
    found: Callable[[Any], Any] = getattr(importlib.import_module(module), name)
    return found


def show_help(config_name: str, args: argparse.Namespace) -> None:
    """Prints the help of the groups, options and keys that follow --help."""
    from dit.cli.group_help import help_of

    try:
        print(help_of(config_name, args.overrides, args.config_dir))
    except ValueError as error:
        stop(str(error))


def front_door(config_name: str, job: str, sweep_end: str | None = None) -> None:
    """Runs `module:function` on the composed config. sweep_end: another that is called after a sweep, also one that
    fails, with the sweep's folder."""
    if fault := fault_of_option_name(sys.argv[1:]):
        stop(fault)
    args = get_args()  # parsed like Hydra does
    if not args.multirun:  # with -m a range is several runs
        sys.argv[1:] = [range_as_list(word) if word in args.overrides else word for word in sys.argv[1:]]
        args = get_args()
    if args.help and args.overrides:
        return show_help(config_name, args)
    informs = args.help or args.hydra_help or args.info or args.shell_completion
    if not informs and args.config_path is None:  # with another conf/ there is no schema to check against
        fault = first_fault(config_name, args.overrides, args.config_dir, args.config_name, args.multirun)
        if fault:
            stop(fault)
        for note in map(note_of_commas, [] if args.multirun else args.overrides):
            print(note, end="", file=sys.stderr)

    @hydra.main(config_path=str(CONF), config_name=config_name, version_base="1.3")
    def main(cfg: DictConfig) -> Any:
        if "SUBMITIT_EXECUTOR" in os.environ:  # before Lightning is imported, which reads the rank
            from dit.distributed import describe_submitit_job

            describe_submitit_job()
        try:
            named_extractors(cfg, args.config_dir)
            check_config(config_name, plain(cfg, throw_on_missing=False), trusted=True)
            return called(job)(cfg)
        except Exception as error:
            message = message_of(error)
            if message is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            stop(message)

    try:
        main()
    finally:
        end_sweep(sweep_end if args.multirun else None)


def is_memory(error: BaseException) -> bool:
    """Returns True if memory ran out, which PyTorch reports as a RuntimeError on the CPU."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )
