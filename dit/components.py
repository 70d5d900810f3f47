"""Components by their names in conf/, for Python."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
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
            return named_extractors(compose(config_name, overrides=overrides))
    except (ConfigCompositionException, HydraException, OmegaConfBaseException) as error:
        raise ValueError(first_line(error)) from None
    finally:
        GlobalHydra.instance().hydra = around


def named_extractors(cfg: DictConfig, config_dir: str | None = None) -> DictConfig:
    """Replaces names of extractors, metric.fd_own.extractor=pixels, by their configs in conf/metric/extractor, in
    place, and returns the config. config_dir: another folder like conf/, searched first. Raises ValueError for an
    unknown name."""
    folders = [Path(folder) / "metric/extractor" for folder in (config_dir, CONF) if folder is not None]
    known = {file.stem: file for folder in reversed(folders) for file in folder.glob("*.yaml")}
    for name, metric in (cfg.get("metric") or {}).items():
        given = metric.get("extractor") if isinstance(metric, DictConfig) else None
        if isinstance(given, str):
            if given not in known:
                names = ", ".join(sorted(known))
                raise ValueError(f"metric.{name}.extractor={given}: there is no such extractor; choose one of {names}")
            metric.extractor = OmegaConf.load(known[given])
    return cfg


def component(group: str, name: str, **options: Any) -> Any:
    """Returns a component: `component("sampler", "ddim", eta=0.5)` is sampler=ddim with another eta.

    group: a folder of conf/, such as sampler, grid, guidance, path, prediction, autoencoder or metric. For metrics, of
    which a name may choose several, and for other choices of several it returns a dict by name. The extractor of
    metrics, also of several, may be a name: `component("metric", "nearest_train", extractor="own")`. Raises ValueError
    for a group, a name or an option that does not exist.
    """
    groups = [folder.name for folder in CONF.iterdir() if folder.is_dir()]
    if group not in groups:
        raise ValueError(f"group={group!r}: there is no such group.{nearest(group, groups)}")
    names = [file.stem for file in (CONF / group).glob("*.yaml")]
    if name not in names:
        raise ValueError(f"{group}={name!r}: there is no such {group}.{nearest(name, names)}")
    cfg, what = composed(f"{group}/{name}", []), f"{group}={name}"
    node = cfg[group]
    if group == "metric" and isinstance(options.get("extractor"), str):
        extractor = options.pop("extractor")
        for part in node.values():
            check_options(part, ["extractor"], what)
            OmegaConf.update(part, "extractor", extractor, merge=False, force_add=True)
        named_extractors(cfg)
    if "_target_" in node:
        return build(node, options, what)
    parts = {str(key): build(part, options, what) for key, part in node.items()}
    return next(iter(parts.values())) if group == "sampler" and len(parts) == 1 else parts


def check_options(node: DictConfig, options: Iterable[str], what: str) -> None:
    """Raises ValueError for an option that the target of a config node does not take."""
    parameters = inspect.signature(get_object(node._target_)).parameters
    for option in options:
        if option not in parameters:
            raise ValueError(f"{what} takes no {option}.{nearest(option, parameters)}")


def build(node: DictConfig, options: dict[str, Any], what: str) -> Any:
    """Instantiates a config node, with options that override its values. Raises ValueError for an unknown option."""
    check_options(node, options, what)
    try:
        return instantiate(node, **options)
    except InstantiationException as error:
        raise ValueError(f"{what}: {first_line(error.__cause__ or error)}") from None
