"""Damage to configs and files, drawn from a seed."""

import copy
import math
import random
from typing import Any

VALUES: list[Any] = [
    0, -1, 1, 3, 2.5, -0.5, math.nan, math.inf, 1e300, 10**12, 10**30, True, False, None, "", "x", "cpu", "a/b", "\0",
    "???", [], [1], [0.5, 0.5], ["a"], [[]], {}, {"a": 1}, {"_target_": "os.system"}, {"_target_": 3},
    {"_target_": "dit.files.write_atomic"}, {"_target_": "dit.diffusion.time.LogitNormal"},
    {"_target_": "dit.diffusion.time.Karras"}, {"_target_": "dit.backbones.gone.Gone"}, {"_target_": "no such thing"},
    {"_target_": "dit.diffusion.path.DiscreteBetas", "betas": {"_target_": "dit.diffusion.path.linear_betas", "steps": 10}},
]  # fmt: skip


def paths_in(node, prefix=()):
    """Every key of a config, as a tuple."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in inner:
        yield (*prefix, key)
        yield from paths_in(value, (*prefix, key))


def parts_in(node):
    """Every part of a config."""
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    if isinstance(node, dict) and "_target_" in node:
        yield node
    for value in inner:
        yield from parts_in(value)


def mutated(config: dict, draw: random.Random) -> tuple[dict, str]:
    """A copy of a config with one key taken away, or another value or part in its place; and what was done."""
    changed = copy.deepcopy(config)
    path = draw.choice(list(paths_in(changed)))
    parent = changed
    for key in path[:-1]:
        parent = parent[key]
    if isinstance(parent, dict) and draw.random() < 0.15:
        del parent[path[-1]]
        return changed, f"{path} taken away"
    choices = VALUES if draw.random() < 0.8 else list(parts_in(config)) or VALUES
    parent[path[-1]] = copy.deepcopy(draw.choice(choices))
    return changed, f"{path} = {parent[path[-1]]!r}"


def damaged(data: bytes, draw: random.Random) -> bytes:
    """A file cut short, with some bytes changed, or with others put in."""
    kind, place = draw.randrange(3), draw.randrange(len(data))
    if kind == 0:
        return data[:place]
    some = draw.randbytes(draw.randrange(1, 9))
    return data[:place] + some + data[place + (len(some) if kind == 1 else 0) :]
