"""Whether a config is still that of the run that it goes on with."""

from __future__ import annotations

from typing import Any

from dit.errors import shortened
from dit.plain_values import flat

ABSENT = "absent"
FREE = (  # what may differ: where a run lies and is logged, what it runs on, how long, and what is drawn and scored
    *("resume", "resume_override", "trust", "name", "run_dir", "runs_dir", "cache_dir", "wandb", "compile"),
    *("metric", "recipe", "sampler", "grid", "guidance", "closing_prompts", "data.prompts", "data.module.workers"),
    *(f"callbacks.{name}" for name in ("bar", "throughput", "checkpoints", "finite_loss")),
    *(f"callbacks.{name}" for name in ("previews", "scores", "closing_score")),
    "trainer",
)
SHAPING = ("trainer.precision", "trainer.gradient_clip_val", "trainer.gradient_clip_algorithm")  # yet not these
FIXED = (
    "task",
    "backbone",
    "adapter",
    "optimizer._target_",
    "init",
)  # these never change in a resumed run
GROWING = ("text_encoder.words", "text_encoder.names")  # null until they are read from the captions; new ones come last


def lies_in(key: str, places: tuple[str, ...]) -> bool:
    return any(key == place or key.startswith(f"{place}.") for place in places)


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What shapes a run and differs between two plain configs: dotted key -> (old, new). What stands in several places,
    such as the seed of the data, is named once."""
    before, now = flat(old), flat(new)
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted({*before, *now}, key=lambda key: (key.count("."), key)):
        was, wanted = before.get(key, ABSENT), now.get(key, ABSENT)
        free = lies_in(key, FREE) and not lies_in(key, SHAPING)
        if was == wanted or free or (key == "init" and wanted is None):
            continue
        if key == "autoencoder.path" and now.get("fit_autoencoder.start") is not None:
            continue  # where each run keeps the autoencoder that it fits
        if key in GROWING and (wanted is None or (was and wanted[: len(was)] == was)):
            continue
        last = key.rpartition(".")[2]
        if not any(other.rpartition(".")[2] == last and pair == (was, wanted) for other, pair in found.items()):
            found[key] = (was, wanted)
    return found


def check_same(old: dict[str, Any], new: dict[str, Any], override: bool) -> dict[str, tuple[Any, Any]]:
    """The differences to apply. Raises ValueError where there are some and `override` is false, or where one cannot be
    applied."""
    found = differences(old, new)
    fixed = {key: pair for key, pair in found.items() if lies_in(key, FIXED)}
    if fixed:
        raise ValueError(f"the run that is resumed has {_listed(fixed)}: this cannot change; start a new run for it")
    if found and not override:
        raise ValueError(
            f"the run that is resumed has {_listed(found)}: repeat its values, or say resume_override=true to go on "
            f"with the new ones"
        )
    return found


def _listed(found: dict[str, tuple[Any, Any]], most: int = 5) -> str:
    shown = [
        f"{key}={shortened(str(old))}, not {shortened(str(new))}" for key, (old, new) in list(found.items())[:most]
    ]
    more = f"; and {len(found) - most} other differences" if len(found) > most else ""
    return "; ".join(shown) + more
