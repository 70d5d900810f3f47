"""The recipes of a sweep: grids x samplers x guidance scales x steps x thresholds of a step cache."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import product
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dit.build import trained_with_null
from dit.errors import nearest
from dit.evaluation.model_description import code_outside, with_content
from dit.files import CONF
from dit.pipeline import Recipe
from dit.plain_values import listed, numbers, plain


def recipes_of(cfg: DictConfig, run: DictConfig) -> Iterator[tuple[dict[str, Any], Recipe]]:
    """Yields grids x samplers x guidance scales x steps x thresholds of the step cache, if there is one: the
    description for a card, and the recipe."""
    samplers = instantiate(cfg.sampler)
    guidance = {k: v for k, v in with_content(plain(cfg.guidance)).items() if k != "scale"}
    scales = scales_of(cfg.guidance, run)
    for grid_name, node in grids_of(cfg, run).items():
        grid = instantiate(node)
        for name, sampler in samplers.items():
            for scale in scales:
                for steps, cache in product(numbers(cfg.steps, "steps"), caches_of(cfg.cache)):
                    detail = {"sampler": plain(cfg.sampler[name]), "grid": plain(node), "guidance": guidance}
                    detail |= {} if cache is None else {"cache": cache}
                    detail |= {"code": code} if (code := code_outside(detail)) else {}
                    kind = {"sampler": name, "grid": grid_name, "steps": steps, "guidance": float(scale)}
                    kind |= {} if cache is None else {"cache": cache["threshold"]}
                    how = instantiate(cfg.guidance, scale=float(scale))
                    recipe = Recipe(sampler, grid, steps, how, cache=None if cache is None else instantiate(cache))
                    yield kind | {"recipe": detail}, recipe


def caches_of(cache: DictConfig | None) -> list[dict[str, Any] | None]:
    """Returns the step cache with each of its thresholds; None if there is none."""
    if cache is None:
        return [None]
    thresholds = numbers(cache.threshold, "cache.threshold", float)
    return [plain(cache) | {"threshold": float(threshold)} for threshold in thresholds]


def grids_of(cfg: DictConfig, run: DictConfig) -> dict[str, DictConfig]:
    """Returns the grids by name: those of the list `grids`, or else the chosen one, or else the run's."""
    known = {file.stem: OmegaConf.load(file) for file in sorted((CONF / "grid").glob("*.yaml"))}
    if not cfg.grids:
        node = cfg.grid or run.grid
        same = (name for name, other in known.items() if other == node)  # its name in conf/, if it has one
        return {next(same, str(node._target_).rpartition(".")[2]): node}
    found = {}
    for name in listed(cfg.grids, "grids"):
        if name not in known:
            raise ValueError(f"grids={name}: there is no such grid.{nearest(name, known)}")
        node = known[name] or run.grid
        assert isinstance(node, DictConfig)
        found[name] = node
    return found


def scales_of(guidance: DictConfig, run: DictConfig) -> list[float]:
    """Returns the guidance scales. Of several, those that the run supports: only 1 if it was never trained with the
    null condition or has no captions. Reports the scales that are left out."""
    scales = numbers(guidance.scale, "guidance.scale", float)
    has_null = "network" in guidance or trained_with_null(run)
    left_out = [] if has_null else [s for s in scales if s != 1 and instantiate(guidance, scale=float(s)).uses_null]
    if not left_out or len(left_out) == len(scales):
        return scales
    print(
        f"warning: guidance.scale={','.join(map(str, left_out))} left out: {run.name} was trained on pictures without "
        f"captions or with caption_dropout=0, so that guidance has no null condition",
        file=sys.stderr,
    )
    return [1]
