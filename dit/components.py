"""Components by their names in conf/, for Python."""

from __future__ import annotations

import inspect
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from dit.errors import first_line, nearest
from dit.files import CONF


def composed(config_name: str, overrides: list[str]) -> DictConfig:
    """Returns a command's config with overrides in the syntax of the command line, also inside of another command of
    Hydra. Raises ValueError for an unknown group, name or key."""
    around = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(config_name, overrides=overrides)
    except (ConfigCompositionException, HydraException, OmegaConfBaseException) as error:
        raise ValueError(first_line(error)) from None
    finally:
        GlobalHydra.instance().hydra = around


def component(group: str, name: str, **options: Any) -> Any:
    """Returns a component: `component("sampler", "ddim", eta=0.5)` is sampler=ddim with another eta.

    group: a folder of conf/, such as sampler, grid, guidance, path, prediction, autoencoder or metric. For a choice of
    several, such as metric=shapes, it returns a dict by name. Raises ValueError for a group, a name or an option that
    does not exist.
    """
    groups = [folder.name for folder in CONF.iterdir() if folder.is_dir()]
    if group not in groups:
        raise ValueError(f"group={group!r}: there is no such group.{nearest(group, groups)}")
    names = [file.stem for file in (CONF / group).glob("*.yaml")]
    if name not in names:
        raise ValueError(f"{group}={name!r}: there is no such {group}.{nearest(name, names)}")
    node = composed(f"{group}/{name}", [])[group]
    if "_target_" in node:
        return build(node, options, f"{group}={name}")
    parts = {str(key): build(part, options, f"{group}={name}") for key, part in node.items()}
    return next(iter(parts.values())) if group == "sampler" and len(parts) == 1 else parts


def build(node: DictConfig, options: dict[str, Any], what: str) -> Any:
    """Instantiates a config node, with options that override its values. Raises ValueError for an unknown option."""
    parameters = inspect.signature(get_object(node._target_)).parameters
    for option in options:
        if option not in parameters:
            raise ValueError(f"{what} takes no {option}.{nearest(option, parameters)}")
    try:
        return instantiate(node, **options)
    except InstantiationException as error:
        raise ValueError(f"{what}: {first_line(error.__cause__ or error)}") from None
