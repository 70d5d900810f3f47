"""Parts of dit by their names in conf/: what a config chooses, for Python."""

from __future__ import annotations

import inspect
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, HydraException, InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from dit.errors import first_line, nearest
from dit.files import CONF


def composed(config_name: str, overrides: list[str]) -> DictConfig:
    """A command's config with overrides, as its command line reads them. Raises ValueError for what it does not
    know."""
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(config_name, overrides=overrides)
    except (ConfigCompositionException, HydraException, OmegaConfBaseException) as error:
        raise ValueError(first_line(error)) from None


def component(group: str, name: str, **options: Any) -> Any:
    """Makes a part of dit: `component("sampler", "ddim", eta=0.5)` is sampler=ddim with its eta changed.

    group: a folder of conf/, such as sampler, grid, guidance, path, prediction, autoencoder or metric. Of metrics, of
    which a choice such as metric=shapes has several, a dict by name is returned. Raises ValueError for a group, a name
    or an option that does not exist.
    """
    groups = [folder.name for folder in CONF.iterdir() if folder.is_dir()]
    if group not in groups:
        raise ValueError(f"group={group!r}: there is no such group.{nearest(group, groups)}")
    names = [file.stem for file in (CONF / group).glob("*.yaml")]
    if name not in names:
        raise ValueError(f"{group}={name!r}: there is no such {group}.{nearest(name, names)}")
    node = composed(f"{group}/{name}", [])[group]
    if "_target_" in node:
        return made(node, options, f"{group}={name}")
    parts = {str(key): made(part, options, f"{group}={name}") for key, part in node.items()}
    return next(iter(parts.values())) if group == "sampler" and len(parts) == 1 else parts


def made(node: DictConfig, options: dict[str, Any], what: str) -> Any:
    """What a config node describes, with options in place of its own."""
    taken = inspect.signature(get_object(node._target_)).parameters
    for option in options:
        if option not in taken:
            raise ValueError(f"{what} takes no {option}.{nearest(option, taken)}")
    try:
        return instantiate(node, **options)
    except InstantiationException as error:
        raise ValueError(f"{what}: {first_line(error.__cause__ or error)}") from None
