"""dit's own checkpoints: Lightning's, with the resolved config inside, read without running any code of theirs."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dit.errors import first_line

CONFIG = "dit_config"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Raises ValueError when the file is missing, broken, or not one of dit's."""
    if not path.is_file():
        raise ValueError(f"checkpoint {path} does not exist")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, pickle.UnpicklingError) as error:
        why = first_line(error)
        raise ValueError(f"checkpoint {path} is broken or holds more than plain tensors and numbers: {why}") from None
    if not isinstance(checkpoint, dict) or CONFIG not in checkpoint or "state_dict" not in checkpoint:
        raise ValueError(
            f"{path} is not a checkpoint of dit: it has no {CONFIG!r}; give a run directory or its .ckpt file"
        )
    return checkpoint


def checkpoints_of(run: Path) -> list[Path]:
    """The checkpoint files of a run, newest first."""
    return sorted((run / "checkpoints").glob("step_*.ckpt"), key=lambda file: int(file.stem[5:]), reverse=True)


def newest_checkpoint(run: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of a run that can be read; each broken one before it costs a warning on stderr."""
    for path in checkpoints_of(run):
        try:
            return path, read_checkpoint(path)
        except ValueError as error:
            print(f"warning: {error}; falling back to the one before", file=sys.stderr)
    return None


def find_checkpoint(where: str | Path) -> tuple[Path, dict[str, Any]]:
    """`where` is a run directory or a .ckpt file. Raises ValueError when there is no readable checkpoint."""
    path = Path(where).absolute()
    if path.is_file():
        return path, read_checkpoint(path)
    if not path.is_dir():
        raise ValueError(f"{where}: no such run directory or checkpoint")
    files = checkpoints_of(path)
    if not files:
        raise ValueError(f"{where} holds no checkpoint (checkpoints/step_*.ckpt){_runs_below(path)}")
    found = newest_checkpoint(path)
    if found is None:
        raise ValueError(f"{where}: none of its {len(files)} checkpoints can be read; name another run")
    return found


def _runs_below(folder: Path) -> str:
    """What to give in place of a folder that is no run: a sweep holds runs, and the runs of one name hold sweeps."""
    found = [
        p for depth in ("*", "*/*", "*/*/*") for p in folder.glob(f"{depth}/checkpoints") if checkpoints_of(p.parent)
    ]
    if not found:
        return "; train it first"
    names = [str(p.parent) for p in sorted(found)]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f", but {len(names)} runs lie below it: name one of {', '.join(names[:3])}{more}"


def averages_of(checkpoint: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """The EMA weights by parameter name, of every decay: {"ema_0.999": {...}, ...}, first the one that `ema` means.
    Empty where training kept none."""
    return dict(checkpoint.get("callbacks", {}).get("EMA", {}).get("averages", {}))


def weights_of(checkpoint: dict[str, Any]) -> list[str]:
    """The names of the weights that it holds: ema, the first average, where there is one; each by its decay; raw."""
    averages = averages_of(checkpoint)
    return [*(["ema"] if averages else []), *averages, "raw"]


def load_backbone(backbone: nn.Module, checkpoint: dict[str, Any], weights: str = "ema") -> None:
    """Copies weights of a checkpoint, by one of the names of `weights_of`, into a backbone.

    Raises ValueError when it holds no such weights, and, naming the first few keys, when it is of another model or
    another width.
    """
    if weights not in weights_of(checkpoint):
        held = ", ".join(weights_of(checkpoint))
        raise ValueError(f"weights={weights!r} are not in this checkpoint; it holds weights={held}")
    averages, state = averages_of(checkpoint), dict(checkpoint["state_dict"])
    if weights != "raw":
        state |= next(iter(averages.values())) if weights == "ema" else averages[weights]
    prefix = "backbone."
    state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    check_fit(backbone, state)
    backbone.load_state_dict(state)


def check_fit(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Raises ValueError unless the state dict has exactly the module's keys and shapes."""
    wanted = {k: tuple(v.shape) for k, v in module.state_dict().items()}
    given = {k: tuple(v.shape) for k, v in state.items()}
    faults = [f"{k} is missing" for k in wanted.keys() - given.keys()]
    faults += [f"{k} is unknown" for k in given.keys() - wanted.keys()]
    faults += [f"{k} is {given[k]}, not {wanted[k]}" for k in wanted.keys() & given.keys() if wanted[k] != given[k]]
    if faults:
        shown = "; ".join(sorted(faults)[:3])
        raise ValueError(
            f"the checkpoint is of another model, {len(faults)} of {len(wanted)} weights do not fit: {shown}. "
            f"Use the config it was trained with"
        )
