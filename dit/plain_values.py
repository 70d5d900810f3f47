"""Configs as plain values: strings, numbers, null, lists and dicts with string keys, without interpolations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dit.annotations import brief
from dit.errors import shortened

MOST, DEEPEST = 2_000_000, 32  # limits on values and levels of a config, far above those of any run
TARGET = "_target_"
ABSENT = "absent"  # in place of the value of a key that a config lacks


def plain(cfg: DictConfig, throw_on_missing: bool = True) -> dict[str, Any]:
    """Returns the resolved config in plain containers, which a checkpoint can hold.

    throw_on_missing: False leaves ??? for a value that must still be given."""
    resolved = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=throw_on_missing)
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def check_plain(config: Any, what: str) -> None:
    """Raises ValueError unless `config`, which comes from a file, is a dict of plain values: strings, numbers, lists
    and dicts with string keys, of bounded size, with nothing that OmegaConf would resolve."""
    if type(config) is not dict:
        raise ValueError(f"{what} is no group of keys and values")
    left, count = [(config, 1)], 0
    while left:
        value, level = left.pop()
        count += 1
        if count > MOST or level > DEEPEST:
            raise ValueError(f"{what} is no config of a run: it holds more than {MOST} values or {DEEPEST} levels")
        if type(value) is dict:
            if not all(type(key) is str for key in value):
                raise ValueError(f"{what} is no config of a run: it has a key that is no text")
            left += [(inner, level + 1) for pair in value.items() for inner in pair]
        elif type(value) is list:
            left += [(inner, level + 1) for inner in value]
        elif type(value) is str:
            if "${" in value or value == "???":
                raise ValueError(f"{what} holds {brief(value)}, which would be resolved, and is not loaded")
        elif value is not None and type(value) not in (bool, int, float):
            raise ValueError(f"{what} holds a {type(value).__name__}, and a config holds only plain values")


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of a plain config by dotted key; lists and empty dicts are leaves."""
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    return {
        key: value
        for name, child in node.items()
        for key, value in flat(child, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def changed(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Returns the leaves that differ between two plain configs: dotted key -> (old, new), the shortest keys first. A
    key that only the new one has, with null or [], is an option of a later version and is no difference."""
    before, now = flat(old, prefix), flat(new, prefix)
    pairs = {key: (before.get(key, ABSENT), now.get(key, ABSENT)) for key in {*before, *now}}
    return {
        key: (was, value)
        for key, (was, value) in sorted(pairs.items(), key=lambda item: (item[0].count("."), item[0]))
        if was != value and not (was == ABSENT and value in (None, []))
    }


def described(found: Mapping[str, tuple[Any, Any]], most: int = 5) -> str:
    """Returns the differences of `changed` as text: KEY=OLD, not NEW; ..."""
    shown = [
        f"{key}={shortened(str(old))}, not {shortened(str(new))}" for key, (old, new) in list(found.items())[:most]
    ]
    more = f"; and {len(found) - most} other differences" if len(found) > most else ""
    return "; ".join(shown) + more


def listed(value: Any, name: str) -> list[Any]:
    """Returns a value or a list of values as a list. Raises ValueError if it is empty."""
    found = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not found:
        raise ValueError(f"{name} is empty; give at least one")
    return found


def numbers(value: Any, name: str, kind: type[int] | type[float] = int) -> list[Any]:
    """Returns a number or a list of numbers as a list. Raises ValueError if it is empty or has other values."""
    found = listed(value, name)
    for item in found:
        if isinstance(item, bool) or not isinstance(item, (int, kind)):
            raise ValueError(f"{name}={item} is not {'a whole number' if kind is int else 'a number'}")
    return found


def sizes(value: Any, name: str) -> list[tuple[int, int]]:
    """Returns the different sizes in pixels as (width, height). value: the side of a square, [WIDTH,HEIGHT], or a list
    of such pairs. Raises ValueError for something else."""
    several = isinstance(value, Sequence) and any(isinstance(item, Sequence) for item in value)
    found = []
    for item in listed(value, name) if several else [value]:
        sides = list(item) if isinstance(item, Sequence) and not isinstance(item, str) else [item, item]
        if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
            raise ValueError(f"{name}={item}: a size is the side of a square, or [WIDTH,HEIGHT], in pixels")
        found.append((sides[0], sides[1]))
    return list(dict.fromkeys(found))


def targets_in(value: Any) -> list[Any]:
    """Returns all `_target_` values inside a value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    own = [value[TARGET]] if isinstance(value, dict) and TARGET in value else []
    return own + [target for item in inner for target in targets_in(item)]
