"""The settings in which runs differ: their names in tables, and which runs differ only in the seed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dit.config import OPEN, has_no_effect, key_of
from dit.errors import shortened
from dit.evaluation.results import short_paths
from dit.files import read_json
from dit.plain_values import ABSENT, flat

SEED = "seed"
UNKNOWN = "unknown"  # the option of a run without a command


@dataclass(frozen=True)
class Origin:
    """What a run was started with: its resolved config, the overrides of the command, and the chosen option of each
    config group. Without a command (a run from Python or of an older version), only the config is known."""

    config: Mapping[str, Any]
    overrides: Sequence[str] = ()
    choices: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Path, config: Mapping[str, Any]) -> Origin:
        """Reads the overrides from environment.json of a run's directory, if it has them."""
        try:
            found = read_json(run / "environment.json")
            return cls(config, found["overrides"] or (), found["choices"])
        except (KeyError, TypeError, ValueError):
            return cls(config)

    @property
    def keys(self) -> list[str]:
        """The overridden keys that can change results, without the seed."""
        keys = [key for key in map(key_of, self.overrides) if not has_no_effect(key) and "/" not in key]
        return [key for key in keys if key.split(".")[0] not in (SEED, "hydra")]

    def value(self, key: str, is_group: bool) -> Any:
        """Returns the value of a key of the config, or the chosen option of a group."""
        if is_group:
            return self.choices.get(key, UNKNOWN)
        node: Any = self.config
        for part in key.split("."):
            if not isinstance(node, Mapping) or part not in node:
                return ABSENT
            node = node[part]
        return node


def digest(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


@dataclass(frozen=True)
class Setting:
    """The settings of one run: the values in which it differs from others, by short name and as texts; and its seed."""

    values: Mapping[str, str]
    seed: int

    @property
    def name(self) -> str:
        """The settings without the seed: lr=4e-3, width=256."""
        return ", ".join(f"{key}={value}" for key, value in self.values.items())


def settings_of_runs(runs: Mapping[Path, Mapping[str, Any]]) -> dict[Path, Setting]:
    """Returns the setting of each run by its directory, from its config. Runs with the same setting and seed are told
    apart by their paths."""
    settings = settings_of([Origin.of(path, config) for path, config in runs.items()])
    found = dict(zip(runs, settings, strict=True))
    paths = dict(zip(runs, texts_of([str(path) for path in runs]), strict=True))
    counts = Counter((setting.name, setting.seed) for setting in settings)
    return {
        path: replace(s, values={**s.values, "run": paths[path]}) if counts[s.name, s.seed] > 1 else s
        for path, s in found.items()
    }


def settings_of(origins: Sequence[Origin]) -> list[Setting]:
    """Returns the setting of each run. Overridden keys come first, in their order on the command line; then keys whose
    values also differ and that do not follow from these."""
    leaves = [leaves_of(origin.config) for origin in origins]
    overridden = dict.fromkeys(key for origin in origins for key in origin.keys)
    groups = {group for origin in origins for group in origin.choices}
    columns = {key: [origin.value(key, key in groups) for origin in origins] for key in overridden}
    columns = {key: values for key, values in columns.items() if len(set(map(digest, values))) > 1}
    names = dict.fromkeys(key for leaf in leaves for key in leaf)
    for key in sorted(names, key=lambda key: key.count(".")):
        values = [leaf.get(key, ABSENT) for leaf in leaves]
        if not follows(values, list(columns.values())) and not all(map(is_seed, values, origins)):
            columns[key] = values
    texts = {key: texts_of(values) for key, values in columns.items()}
    short = short_keys(list(columns))
    return [
        Setting({short[key]: texts[key][i] for key in columns}, int(origin.config.get(SEED, 0)))
        for i, origin in enumerate(origins)
    ]


def leaves_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of a config by dotted key, without those that cannot change results, that a budget fills, or
    that say where something is."""
    found = flat(dict(config))
    left_out = {*OPEN, "trainer.max_epochs"} if config.get("budget_minutes") is not None else set()
    left_out |= {"autoencoder.path"} if config.get("fit_autoencoder") is not None else set()
    return {
        key: value
        for key, value in found.items()
        if not has_no_effect(key) and key.split(".")[0] != SEED and key not in left_out
    }


def follows(values: Sequence[Any], columns: Sequence[Sequence[Any]]) -> bool:
    """Returns whether runs that agree in all columns agree in these values."""
    known: dict[str, str] = {}
    for value, *others in zip(values, *columns, strict=True):
        if known.setdefault(digest(others), digest(value)) != digest(value):
            return False
    return True


def is_seed(value: Any, origin: Origin) -> bool:
    return value == origin.config.get(SEED)


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Returns the last part of each dotted key, with so many parts before it that all are different."""
    short = {}
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        others = [other for other in keys if other != key]
        short[key] = next((end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others)), key)
    return short


def texts_of(values: Sequence[Any]) -> list[str]:
    """Returns values as short texts, all different where the values are: paths without the parts that they share."""
    paths = short_paths(value for value in dict.fromkeys(map(str, values)) if "/" in value)
    whole = [text_of(paths.get(str(value), value)) for value in values]
    short = [shortened(text, 40) for text in whole]
    return short if len(set(short)) == len(set(whole)) else whole


def text_of(value: Any) -> str:
    """Returns a value as on the command line; a number below 0.01 as 4e-3."""
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        if 0 < abs(value) < 0.01:
            mantissa, _, exponent = f"{value:e}".partition("e")
            return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {text_of(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(text_of, value)) + "]"
    return str(value)
