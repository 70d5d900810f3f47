"""Names of earlier versions of dit: their checkpoints and runs can be read, and error messages give the new names.

A version is MAJOR.MINOR.PATCH; the policy is in CHANGELOG.md.
"""

from __future__ import annotations

from typing import Any

from dit import __version__

VERSION = "dit_version"  # the key in a checkpoint for the version that wrote it; checkpoints of 0.1.0 have none
TARGETS = {  # old full names -> new ones
    "dit.cli.build.network_of": "dit.runs.network_of",
    "dit.diffusion.prediction.thousandths": "dit.diffusion.prediction.scaled_time",
    "dit.diffusion.prediction.time_to_data": "dit.diffusion.prediction.reversed_time",
    "dit.pipeline.Recipe.only": "dit.pipeline.Recipe.from_config",
    "dit.training.finite.FiniteLoss": "dit.training.guard.StabilityGuard",
}
KEYS = {  # old keys of a config -> new ones
    "callbacks.finite_loss": "callbacks.guard",
    "prediction.clock": "prediction.c_noise",
    "prediction.mean.clock": "prediction.mean.c_noise",
}
REPLACED = {  # keys of old command lines -> what does the same; old configs that hold them are read as they are
    "sampler.euler_ancestral.eta": "sampler.ddim.eta, with sampler=ddim",
}


class NewerVersion(ValueError):
    """A checkpoint of a newer version, which this one cannot read."""


def upgrade(config: Any, key: str = "") -> Any:
    """Returns a plain config with the names of earlier versions replaced by current ones."""
    if isinstance(config, list):
        return [upgrade(item, key) for item in config]
    if not isinstance(config, dict):
        return config
    found = {}
    for name, value in config.items():
        path = f"{key}.{name}" if key else str(name)
        new = KEYS[path].rpartition(".")[2] if path in KEYS else name
        is_target = name == "_target_" and isinstance(value, str)
        found[new] = TARGETS.get(value, value) if is_target else upgrade(value, path)
    return found


def check_version(written: Any, what: str) -> None:
    """Raises NewerVersion for a checkpoint of a newer version, and ValueError for a malformed version number."""
    if written is None:
        return
    try:
        newer = numbers(str(written)) > numbers(__version__)
    except ValueError:
        raise ValueError(f"{what} is broken: {VERSION}={written!r} is not a version") from None
    if newer:
        raise NewerVersion(
            f"{what} was written by dit {written}, and this is dit {__version__}: read it with dit>={written}"
        )


def numbers(version: str) -> tuple[int, ...]:
    """Returns (major, minor): patch versions do not change the format of checkpoints."""
    return tuple(int(part) for part in version.split(".")[:2])


def renamed(name: str) -> str:
    """Returns ' It is called NEW now.' for an old full name, an old key or a key below one, ' Use NEW.' for a key that
    was replaced, else an empty string."""
    if name in REPLACED:
        return f" Use {REPLACED[name]}."
    for old, new in (TARGETS | KEYS).items():
        if name == old or name.startswith(f"{old}."):
            return f" It is called {new}{name.removeprefix(old)} now."
    return ""
