"""Names of earlier versions of dit, so that their checkpoints and runs are read, and their users find the new ones.

A version is MAJOR.MINOR.PATCH; the policy is in CHANGELOG.md.
"""

from __future__ import annotations

from typing import Any

from dit import __version__

VERSION = "dit_version"  # the key of a checkpoint that says which version wrote it; 0.1.0 wrote none
TARGETS = {  # old full names -> new ones
    "dit.cli.build.network_of": "dit.runs.network_of",
    "dit.diffusion.prediction.thousandths": "dit.diffusion.prediction.scaled_time",
    "dit.diffusion.prediction.time_to_data": "dit.diffusion.prediction.reversed_time",
    "dit.pipeline.Recipe.only": "dit.pipeline.Recipe.from_config",
}
KEYS = {"prediction.clock": "prediction.c_noise"}  # old keys of a config -> new ones


def upgrade(config: Any, key: str = "") -> Any:
    """A plain config with today's names in place of those of earlier versions."""
    if isinstance(config, list):
        return [upgrade(item, key) for item in config]
    if not isinstance(config, dict):
        return config
    found = {}
    for name, value in config.items():
        place = f"{key}.{name}" if key else str(name)
        new = KEYS.get(place, place).rpartition(".")[2] if place in KEYS else name
        is_target = name == "_target_" and isinstance(value, str)
        found[new] = TARGETS.get(value, value) if is_target else upgrade(value, place)
    return found


def check_version(written: Any, what: str) -> None:
    """Raises ValueError for a checkpoint of a newer version, whose parts this one may lack."""
    if written is None:
        return
    try:
        newer = numbers(str(written)) > numbers(__version__)
    except ValueError:
        raise ValueError(f"{what} is broken: {VERSION}={written!r} is not a version") from None
    if newer:
        raise ValueError(
            f"{what} was written by dit {written}, and this is dit {__version__}: read it with dit>={written}"
        )


def numbers(version: str) -> tuple[int, ...]:
    """(major, minor): a patch changes nothing that is written."""
    return tuple(int(part) for part in version.split(".")[:2])


def renamed(name: str) -> str:
    """' It is called NEW now.' for an old key or full name, else nothing."""
    new = KEYS.get(name) or TARGETS.get(name)
    return "" if new is None else f" It is called {new} now."
