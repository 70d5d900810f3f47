"""The help of one config group, option or key: `python train.py --help backbone`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from dit.cli.front import command_name, keys_of, search_first
from dit.errors import nearest, shortened
from dit.files import CONF
from dit.plain_values import flat

GLOBAL = "# @package _global_"  # the first line of an option that may set any key


def help_of(config_name: str, words: Sequence[str], config_dir: str | None = None) -> str:
    """Returns the help of groups (backbone), options (backbone=dit_b_2) and keys (optimizer.lr) of a command.

    Raises ValueError if there is no such group, option or key."""
    folders = [CONF] if config_dir is None else [CONF, Path(config_dir).absolute()]  # an option of the last replaces
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        found = GlobalHydra.instance().hydra
        assert found is not None
        if config_dir is not None:
            search_first(found, folders[-1])
        return "\n\n".join(help_of_word(config_name, word, folders) for word in words)


def help_of_word(config_name: str, word: str, folders: Sequence[Path]) -> str:
    key, _, option = word.partition("=")
    whole = hydra.compose(config_name, return_hydra_config=True)
    groups = {name: chosen for name, chosen in whole.hydra.runtime.choices.items() if not name.startswith("hydra/")}
    options = {file.stem: file for folder in folders for file in sorted((folder / key).glob("*.yaml"))}
    cfg = hydra.compose(config_name)
    if options and (key in groups or key in cfg):
        if option:
            return help_of_option(config_name, key, option, options)
        several = list(map(str, cfg[key])) if key not in groups else []  # of a group with several options at once
        return help_of_group(config_name, key, several or groups[key], options)
    if key not in (known := [name for name in keys_of(cfg) if "._" not in name]):
        raise ValueError(f"--help {key}: there is no such group or key.{nearest(key, [*known, *groups])}")
    return "\n".join(lines_of(OmegaConf.select(cfg, key, throw_on_missing=False), key))


def help_of_group(config_name: str, group: str, chosen: Any, options: dict[str, Path]) -> str:
    """Returns the options of a group with what each is, and the keys of the chosen one with their values."""
    width = max(map(len, options))
    listed = [f"  {name:<{width}}  {description(file)}".rstrip() for name, file in sorted(options.items())]
    lines = [f"{group}: choose with {group}=NAME", *listed, ""]
    if isinstance(chosen, str):
        lines += [help_of_option(config_name, group, chosen, options), ""]
    else:
        lines += [f"By default: {', '.join(chosen or ['none'])}"]
    return "\n".join([*lines, f"The keys of another: {command_name(config_name)} --help {group}=NAME"])


def help_of_option(config_name: str, group: str, option: str, options: dict[str, Path]) -> str:
    """Returns the keys of an option with their values; of an option that may set any key, its text. Raises ValueError
    if there is no such option."""
    if option not in options:
        raise ValueError(f"--help {group}={option}: there is no such {group}.{nearest(option, options)}")
    text = options[option].read_text()
    if text.startswith(GLOBAL):
        lines = [line for line in text.splitlines()[1:] if line.strip()]
        return "\n".join([f"{group}={option} sets:", *(f"  {line}" for line in lines)])
    values = lines_of(hydra.compose(config_name, overrides=[f"{group}={option}"])[group], group)
    return "\n".join([f"Keys of {group}={option}, with their values:", *(f"  {line}" for line in values)])


def description(file: Path) -> str:
    """Returns the first comment of a yaml file that begins with one, up to its first sentence; "" for others."""
    lines = file.read_text().splitlines()
    lines = lines[1:] if lines and lines[0].startswith(GLOBAL) else lines
    first = lines[0] if lines else ""
    return shortened(first.removeprefix("# ").strip(), 90) if first.startswith("# ") else ""


def lines_of(node: Any, key: str) -> Iterator[str]:
    """Yields key=value for each value below a key, as on the command line; the class or function of a part first."""
    values = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else node
    for name, value in flat(values, key).items():
        text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        if not name.endswith("._partial_"):
            yield f"{name}={text}"
