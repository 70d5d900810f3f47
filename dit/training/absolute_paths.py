"""Makes the file paths in a config absolute, so that a run can be used from any folder."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from dit.files import ASSETS
from dit.plain_values import flat

FILES = (  # keys that may name a file or folder; `*` stands for any part of a key
    *(
        "init",
        "distill",
        "data.path",
        "data.module.*.path",
        "data.sources.*.path",
        "data.filter.exclude",
        "autoencoder.path",
        "guidance.network.ckpt",
        "text_encoder.name",
    ),
    *("text_encoder.model", "text_encoder.pretrained", "metric.*.model", "metric.*.pretrained", "metric.*.weights"),
)
LOCAL = "local-dir:"  # open_clip's prefix of a folder


def is_on_disk(key: str, value: str) -> bool:
    """Returns True if a value is a file or folder, not a name on a hub, a tag of weights or a file shipped with dit."""
    if key.endswith(".model"):
        return value.startswith(LOCAL)
    if key == "data.path" and "://" not in value and any(mark in value for mark in "{*?["):
        return Path(re.split(r"[{*?[]", value)[0] or ".").parent.is_dir()  # a pattern of shards
    if key.endswith((".pretrained", ".weights")):
        return Path(value).is_file()
    return value != "" and Path(value).exists() and not (ASSETS / value).exists()


def make_absolute(cfg: DictConfig) -> None:
    """Replaces each relative path of a file or folder by its absolute path, in place."""
    for key in flat(OmegaConf.to_container(cfg, resolve=False)):
        if not any(fnmatchcase(key, pattern) for pattern in FILES):
            continue
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
        if OmegaConf.is_interpolation(node, name) or OmegaConf.is_missing(node, name):
            continue
        value = node[name]
        if isinstance(value, str) and is_on_disk(key, value):
            prefix = LOCAL if value.startswith(LOCAL) else ""
            node[name] = f"{prefix}{Path(value.removeprefix(prefix)).absolute()}"
