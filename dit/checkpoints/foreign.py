"""Weights of other people's making, found by what they are: a diffusers folder or a file of the original DiT code."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dit.backbones.dit import DiT
from dit.backbones.mmdit import MMDiT
from dit.backbones.pixart import PixArt
from dit.checkpoints import dit, pixart, sd3
from dit.checkpoints.native import check_fit, find_checkpoint, load_backbone
from dit.files import replacing, write_atomic

State = dict[str, Tensor]
# what diffusers calls a model -> how it is read; what ours is -> how it is told to diffusers
READERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Tensor]], nn.Module]] = {
    "DiTTransformer2DModel": dit.from_diffusers,
    "PixArtTransformer2DModel": pixart.from_diffusers,
    "SD3Transformer2DModel": sd3.from_diffusers,
}
WRITERS: dict[type[nn.Module], Callable[[Any, int], tuple[dict[str, Any], State]]] = {
    DiT: dit.to_diffusers,
    PixArt: pixart.to_diffusers,
    MMDiT: sd3.to_diffusers,
}
# what older folders call a Transformer2DModel is told by its norm_type
OLDER = {"ada_norm_zero": "DiTTransformer2DModel", "ada_norm_single": "PixArtTransformer2DModel"}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def read_state(path: Path) -> State:
    """A state dict from safetensors, or from a .pt file of plain tensors. Raises ValueError for any other file."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} cannot be read as weights: {first}") from None
    for inner in ("ema", "model", "state_dict"):  # training checkpoints of the original code hold several
        if isinstance(state, dict) and isinstance(state.get(inner), dict):
            state = state[inner]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict of tensors")
    return state


def read_folder(folder: Path) -> nn.Module:
    """The backbone of a diffusers folder: of a transformer, or of a whole pipeline that has one. Shards are joined."""
    if (folder / "transformer" / "config.json").is_file():
        folder = folder / "transformer"
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no diffusers folder: it has no config.json")
    config = json.loads((folder / "config.json").read_text())
    kind = config.get("_class_name")
    if kind == "Transformer2DModel":
        kind = OLDER.get(config.get("norm_type"), kind)
    reader = READERS.get(kind)
    if reader is None:
        raise ValueError(f"{folder} holds a {kind}; known are {', '.join(READERS)}")
    shards = sorted(folder.glob("diffusion_pytorch_model*.safetensors"))
    if not shards:
        raise ValueError(f"{folder} has no {WEIGHTS}; save the model with safe_serialization=True")
    state: State = {}
    for shard in shards:
        state |= read_state(shard)
    with torch.device("meta"):  # the weights that are read take the place of those a network is made with
        return reader(config, state)


def read_backbone(where: str | Path) -> nn.Module:
    """A backbone of ours from a diffusers folder, or from an original DiT or SiT file."""
    path = Path(where)
    if path.is_dir():
        return read_folder(path)
    if path.is_file():
        state = read_state(path)
        with torch.device("meta"):
            return dit.from_original(state)
    raise ValueError(f"{where}: no such file or folder")


def initialize(backbone: nn.Module, where: str | Path) -> None:
    """Starts a backbone from the weights of a run, a diffusers folder or an original file. Raises ValueError when they
    are of another model."""
    path = Path(where)
    if path.suffix == ".ckpt" or (path / "checkpoints").is_dir():
        load_backbone(backbone, find_checkpoint(path)[1])
        return
    made = read_backbone(path)
    if type(made) is not type(backbone):
        kinds = f"{type(made).__name__}, and the config's backbone a {type(backbone).__name__}"
        raise ValueError(f"init={where} is a {kinds}: choose the backbone that these weights are of")
    check_fit(backbone, made.state_dict())
    theirs, ours = settings(made), settings(backbone)
    differing = [
        f"{name} is {theirs.get(name)}, not {value}" for name, value in ours.items() if theirs.get(name) != value
    ]
    if differing:
        raise ValueError(
            f"the weights of init={where} were made for other settings of the backbone: {'; '.join(differing)}"
        )
    backbone.load_state_dict(made.state_dict())


def settings(net: nn.Module) -> dict[str, Any]:
    """The plain numbers and words that a network computes by, besides its weights; eps of norms left out."""
    return {
        f"{name}.{key}".lstrip("."): value
        for name, module in net.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, (int, float, str, type(None)))
        and key not in ("training", "eps")
        and not key.startswith("_")
    }


def write_folder(backbone: nn.Module, folder: Path, sample_size: int) -> None:
    """A diffusers folder: config.json and safetensors. sample_size: the side of the latents, in cells."""
    writer = WRITERS.get(type(backbone))
    if writer is None:
        known = ", ".join(kind.__name__ for kind in WRITERS)
        raise ValueError(f"diffusers has no class for a {type(backbone).__name__}; what it has is {known}")
    config, state = writer(backbone, sample_size)
    write_atomic(folder / "config.json", json.dumps(config, indent=2) + "\n")
    with replacing(folder / WEIGHTS) as growing:
        save_file(state, growing, metadata={"format": "pt"})
