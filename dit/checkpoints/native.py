"""Checkpoints of dit: Lightning's format with the resolved config in it, read without running code from the file."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from dit.annotations import NotNegative, check_value
from dit.checkpoints.sharded import REST, read_rest, read_whole
from dit.config_check import check_config
from dit.errors import first_line
from dit.files import read_text
from dit.plain_values import check_plain
from dit.tensors import load_tensors, mismatches, refuse_mismatches
from dit.versions import VERSION, NewerVersion, check_version, upgrade

CONFIG = "dit_config"
BASE = "dit_base"  # of a checkpoint that holds only an adapter: path and fingerprint of the weights under it


def read_checkpoint(path: Path, whole: bool = True) -> dict[str, Any]:
    """Returns the content of a checkpoint of dit: its config is plain and resolved, its weights are complete tensors by
    name, and its step is an integer.

    whole: if False, the tensors of a sharded checkpoint stay on the meta device, and none is read. Raises ValueError if
    the file is missing, broken or not a checkpoint of dit.
    """
    sharded = (path / REST).is_file()
    if not sharded and not path.is_file():
        raise ValueError(f"checkpoint {path} does not exist")
    try:
        checkpoint = load_tensors(path) if not sharded else read_whole(path) if whole else read_rest(path)
    except ValueError as error:
        raise ValueError(f"checkpoint {error}") from None
    if not isinstance(checkpoint, dict) or CONFIG not in checkpoint or "state_dict" not in checkpoint:
        raise ValueError(
            f"{path} is not a checkpoint of dit: it has no {CONFIG!r}; give a run directory or its .ckpt file"
        )
    check_plain(checkpoint[CONFIG], f"the config in checkpoint {path}")
    check_version(checkpoint.get(VERSION), f"checkpoint {path}")
    checkpoint[CONFIG] = upgrade(checkpoint[CONFIG])
    check_value(checkpoint.get("global_step"), NotNegative, f"checkpoint {path}: global_step")
    check_base(checkpoint.get(BASE), f"checkpoint {path}: {BASE}")
    check_weights(checkpoint["state_dict"], f"checkpoint {path}: state_dict")
    callbacks = checkpoint.setdefault("callbacks", {})
    averaged = callbacks.get("EMA", {}) if isinstance(callbacks, dict) else None
    averages = averaged.get("averages", {}) if isinstance(averaged, dict) else None
    if not isinstance(averages, dict) or not all(type(name) is str for name in averages):
        raise ValueError(f"checkpoint {path} is broken: its averages are not weights by name")
    for name, weights in averages.items():
        check_weights(weights, f"checkpoint {path}: {name}")
    return checkpoint


def check_base(base: Any, what: str) -> None:
    """Raises ValueError unless `base` is None or has the path and the fingerprint of weights."""
    check_value(base, Mapping[str, str] | None, what)
    if base is not None and base.keys() != {"path", "fingerprint"}:
        raise ValueError(f"{what} is broken: it has no path and fingerprint")


def check_weights(state: Any, what: str) -> None:
    """Raises ValueError unless `state` is a dict of dense tensors by name, each with all its values in the file."""
    if not isinstance(state, dict):
        raise ValueError(f"{what} is broken: it contains no weights by name")
    for name, tensor in state.items():
        if type(name) is not str or not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
            raise ValueError(f"{what} is broken: {name!r} is not a dense tensor")
        if tensor.is_quantized or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            raise ValueError(f"{what} is broken: {name} of shape {tuple(tensor.shape)} is incomplete")


def read_run_config(file: Path) -> dict[str, Any]:
    """Returns a run's config.yaml as plain values. Raises ValueError if it cannot be read or has other content."""
    text = read_text(file)
    try:
        config = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        raise ValueError(f"{file} is not a config of a run: {first_line(error)}") from None
    check_plain(config, str(file))
    return dict(upgrade(config))


def is_run(where: str | Path) -> bool:
    """Whether a path is a run of dit, and not weights of other code: a checkpoint, or a directory with checkpoints/."""
    return Path(where).suffix == ".ckpt" or (Path(where) / "checkpoints").is_dir()


def checkpoints_of(run: Path) -> list[Path]:
    """Returns the checkpoint files and folders of a run, newest first."""
    files = [file for file in (run / "checkpoints").glob("step_*.ckpt") if re.fullmatch(r"[0-9]{1,18}", file.stem[5:])]
    return sorted(files, key=lambda file: int(file.stem[5:]), reverse=True)


def newest_checkpoint(run: Path, whole: bool = True) -> tuple[Path, dict[str, Any]] | None:
    """Returns the newest checkpoint of a run that can be read, or None, with a warning on stderr for each broken one.
    whole: that of `read_checkpoint`. Raises ValueError if a newer version of dit wrote one."""
    for path in checkpoints_of(run):
        try:
            return path, read_checkpoint(path, whole)
        except NewerVersion:
            raise
        except ValueError as error:
            print(f"warning: {error}; falling back to the one before", file=sys.stderr)
    return None


def find_checkpoint(where: str | Path, whole: bool = True) -> tuple[Path, dict[str, Any]]:
    """Returns path and content of the newest checkpoint of `where`, a run directory or a .ckpt file.

    whole: that of `read_checkpoint`. Raises ValueError if there is no readable checkpoint.
    """
    path = Path(where).absolute()
    if path.is_file() or (path / REST).is_file():
        return path, read_checkpoint(path, whole)
    if not path.is_dir():
        raise ValueError(f"{where}: no such run directory or checkpoint")
    files = checkpoints_of(path)
    if not files:
        raise ValueError(f"{where} holds no checkpoint (checkpoints/step_*.ckpt){_runs_below(path)}")
    found = newest_checkpoint(path, whole)
    if found is None:
        raise ValueError(f"{where}: none of its {len(files)} checkpoints can be read; name another run")
    return found


def _runs_below(folder: Path) -> str:
    """Returns the end of an error message with the runs below a folder that is not a run, such as a sweep."""
    found = [
        p for depth in ("*", "*/*", "*/*/*") for p in folder.glob(f"{depth}/checkpoints") if checkpoints_of(p.parent)
    ]
    if not found:
        return "; train it first"
    names = [str(p.parent) for p in sorted(found)]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f", but {len(names)} runs are below it: name one of {', '.join(names[:3])}{more}"


def averages_of(checkpoint: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Returns the EMA weights by parameter name for each decay, {"ema_0.999": {...}, ...}. The first is `weights=ema`.
    Empty if training kept none."""
    return dict(checkpoint.get("callbacks", {}).get("EMA", {}).get("averages", {}))


def weights_of(checkpoint: dict[str, Any]) -> list[str]:
    """Returns the names of its weights: ema (the first average, if there is any), each average, and raw."""
    averages = averages_of(checkpoint)
    return [*(["ema"] if averages else []), *averages, "raw"]


def load_backbone(backbone: nn.Module, checkpoint: dict[str, Any], weights: str | Mapping[str, Tensor] = "ema") -> None:
    """Loads weights of a checkpoint into a backbone, which may be on the meta device. weights: a name of `weights_of`,
    or the averages of the trained parameters by name.

    Raises ValueError if the checkpoint has no such weights, or, with the first keys that differ, if it is of another
    model.
    """
    if isinstance(weights, str) and weights not in weights_of(checkpoint):
        held = ", ".join(weights_of(checkpoint))
        raise ValueError(f"weights={weights!r} are not in this checkpoint; it holds weights={held}")
    averages, state = averages_of(checkpoint), dict(checkpoint["state_dict"])
    if not isinstance(weights, str):
        state |= weights
    elif weights != "raw":
        state |= next(iter(averages.values())) if weights == "ema" else averages[weights]
    prefix = "backbone."
    state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    own: Mapping[str, Tensor] = backbone.state_dict() if checkpoint.get(BASE) is None else trained_of(backbone)
    check_fit(own, state)
    # copied, because the mapped file may change
    copies = {name: tensor.to(own[name].dtype, copy=True) for name, tensor in state.items()}
    backbone.load_state_dict(copies, strict=False, assign=True)


def trained_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters that are trained by name: all that the checkpoint of an adapter holds."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def check_depth(settings: Mapping[str, Any], checkpoint: dict[str, Any]) -> None:
    """Raises ValueError for a backbone of more blocks than the checkpoint has tensors, before it is built. The blocks
    of an adapter's backbone are in its base, which is checked when it is loaded."""
    for name, value in settings.items() if checkpoint.get(BASE) is None else ():
        if name.endswith("depth") and isinstance(value, int) and value > len(checkpoint["state_dict"]):
            raise ValueError(f"backbone.{name}={value} is more than the checkpoint has weights for")


def config_of(path: Path, checkpoint: dict[str, Any]) -> DictConfig:
    """Returns the config of a diffusion run. The checkpoint may name only parts of dit in their places and of packages
    that the user has consented to, so that building them runs no other code. Raises ValueError otherwise."""
    config = checkpoint[CONFIG]
    if config.get("task") != "diffusion":
        task = config.get("task")
        raise ValueError(f"{path} is a checkpoint of task={task}, not of a diffusion model: it cannot be sampled")
    try:
        check_config("train", config, trusted=False)
        check_depth(config["backbone"], checkpoint)
    except ValueError as error:
        raise ValueError(f"checkpoint {path} is not loaded: {error}") from None
    return OmegaConf.create(config)


def check_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless two state dicts have the same keys, shapes and number types (integer or float)."""
    faults = mismatches(own, state)
    refuse_mismatches("the checkpoint is of another model", faults, "; use the config it was trained with")
