"""LoRA files on a pipeline of diffusers: loaded by its own loader, and refused if something in them does not fit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from dit.errors import first_line
from dit.files import sha256_of
from dit.hub import BROKEN, offline

DEFAULT = "pytorch_lora_weights.safetensors"  # the file of a folder that diffusers writes
# The ends of the names of a low-rank update in the layouts of peft, diffusers and kohya: its first matrix, and others.
FIRST = re.compile(r"[._](lora_A|lora\.down|lora_down|lora_linear_layer\.down)\.weight$")
OTHERS = re.compile(
    r"[._](lora_B|lora\.up|lora_up|lora_linear_layer\.up)\.(weight|bias)$|\.alpha$|\.(dora_scale|lora_magnitude_vector)$"
)


def load_loras(pipe: Any, paths: Sequence[str | Path]) -> list[dict[str, str]]:
    """Adds LoRA files, or folders that have one, to a pipeline of diffusers. Returns each file's name and hash.

    Raises ValueError for a pipeline without a loader, a file that cannot be read, and one of which something does not
    fit, with its keys: diffusers ignores those.
    """
    if paths and not hasattr(pipe, "load_lora_weights"):
        raise ValueError(f"lora={paths[0]}: diffusers has no loader of LoRA for {type(pipe).__name__}; merge it first")
    found = []
    for number, path in enumerate(map(Path, paths)):
        file = path / DEFAULT if path.is_dir() else path
        check_names(file)
        load_lora(pipe, file, f"lora_{number}")
        found.append({"file": file.name, "sha256": sha256_of(file)})
    return found


def check_names(file: Path) -> None:
    """Raises ValueError if a file is no safetensors, or has tensors that are not of low-rank updates."""
    if file.suffix != ".safetensors" or not file.is_file():
        raise ValueError(f"lora={file} is not a .safetensors file, nor a folder with {DEFAULT}")
    try:
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())
    except (OSError, SafetensorError) as error:
        raise ValueError(f"lora={file} cannot be read: {first_line(error)}") from None
    if odd := [name for name in names if not (FIRST.search(name) or OTHERS.search(name))]:
        raise ValueError(f"lora={file} has {listed(odd)}, not of a LoRA that diffusers reads")


def load_lora(pipe: Any, file: Path, name: str) -> None:
    """Adds one file as the adapter `name`. Raises ValueError if not every update of the file is in a layer then."""
    import diffusers

    settings = {"weight_name": file.name, "local_files_only": True, "use_safetensors": True}
    level = diffusers.utils.logging.get_verbosity()
    diffusers.utils.logging.set_verbosity_error()  # its warnings name each part for which the file has nothing
    try:
        with offline():
            state = pipe.lora_state_dict(str(file.parent), **settings)  # in diffusers' names; some add the alphas
            pipe.load_lora_weights(str(file.parent), adapter_name=name, **settings)
    except (*BROKEN, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"lora={file} cannot be loaded into {type(pipe).__name__}: {first_line(error)}") from None
    finally:
        diffusers.utils.logging.set_verbosity(level)
    keys = [key for key in (state[0] if isinstance(state, tuple) else state) if FIRST.search(key)]
    layers = adapted_layers(pipe, name)
    if len(layers) < len(keys):
        absent = [key for key in keys if not any(FIRST.sub("", key).endswith(layer) for layer in layers)]
        raise ValueError(
            f"lora={file} does not fit {type(pipe).__name__}: {len(keys) - len(layers)} of its {len(keys)} updates are "
            f"of layers that it does not have, such as {listed(absent or keys)}"
        )


def adapted_layers(pipe: Any, name: str) -> list[str]:
    """Returns the names of the layers that have the adapter `name`."""
    return [
        layer
        for part in pipe.components.values()
        if isinstance(part, nn.Module)
        for layer, module in part.named_modules()
        if name in getattr(module, "lora_A", {})
    ]


def listed(names: Sequence[str]) -> str:
    """Returns the first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"
