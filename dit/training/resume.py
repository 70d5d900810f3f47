"""Compares a config with that of the run it resumes."""

from __future__ import annotations

from typing import Any

from dit.config import has_no_effect
from dit.plain_values import changed, described, flat

FREE = (  # may differ: hardware, length, and what is sampled and scored
    *("name", "compile", "activation_checkpointing"),
    *("metric", "recipe", "sampler", "grid", "guidance", "closing_prompts", "data.prompts", "data.module.workers"),
    *(f"callbacks.{name}" for name in ("bar", "throughput", "checkpoints", "guard")),
    *(f"callbacks.{name}" for name in ("previews", "scores", "closing_score", "posthoc_ema", "early_stopping")),
    "trainer",
)
SHAPING = ("trainer.precision", "trainer.gradient_clip_val", "trainer.gradient_clip_algorithm")  # must not differ
FIXED = ("task", "backbone", "adapter", "optimizer._target_", "init", "distill")  # never change in a resumed run
GROWING = ("text_encoder.words", "text_encoder.names")  # null until read from the captions; new ones are appended


def is_under(key: str, places: tuple[str, ...]) -> bool:
    return any(key == place or key.startswith(f"{place}.") for place in places)


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns the differences between two plain configs that change results: dotted key -> (old, new). A value that
    occurs under several keys, such as the seed, is listed once."""
    found: dict[str, tuple[Any, Any]] = {}
    for key, (was, value) in changed(old, new).items():
        free = (is_under(key, FREE) and not is_under(key, SHAPING)) or has_no_effect(key)
        if free or (key == "init" and value is None):
            continue
        if key == "autoencoder.path" and flat(new).get("fit_autoencoder.start") is not None:
            continue  # each run has its own fitted autoencoder
        if key in GROWING and (value is None or (was and value[: len(was)] == was)):
            continue
        last = key.rpartition(".")[2]
        if not any(other.rpartition(".")[2] == last and pair == (was, value) for other, pair in found.items()):
            found[key] = (was, value)
    return found


def check_same(old: dict[str, Any], new: dict[str, Any], override: bool) -> dict[str, tuple[Any, Any]]:
    """Returns the differences to apply. Raises ValueError if there are any and `override` is false, or if one of them
    cannot change."""
    found = differences(old, new)
    fixed = {key: pair for key, pair in found.items() if is_under(key, FIXED)}
    if fixed:
        raise ValueError(f"the run that is resumed has {described(fixed)}: this cannot change; start a new run for it")
    if found and not override:
        raise ValueError(
            f"the run that is resumed has {described(found)}: repeat its values, or say resume_override=true to "
            f"continue with the new ones"
        )
    return found
