"""Weights of other people's making, found by what they are: a diffusers folder or a file of the original DiT code."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dit.annotations import check_value
from dit.backbones.dit import DiT
from dit.backbones.mmdit import MMDiT
from dit.backbones.pixart import PixArt
from dit.checkpoints import dit, pixart, sd3
from dit.checkpoints.native import check_fit, check_weights
from dit.errors import first_line
from dit.files import read_json, replacing, write_atomic
from dit.plain_values import check_plain
from dit.tensors import load_tensors

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
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "ema_model.")
WEIGHTS = "diffusion_pytorch_model.safetensors"


class TensorFiles(Mapping[str, Tensor]):
    """The tensors of safetensors files, in the type that networks are made in; each is read when it is asked for, so
    that what is not kept takes no memory."""

    def __init__(self, files: Sequence[Path]) -> None:
        places: dict[str, Path] = {}
        for file in files:
            with safe_open(file, "pt") as opened:
                places |= dict.fromkeys(opened.keys(), file)
        self.wrapper = wrapper_of(places)
        self.places = {name.removeprefix(self.wrapper): file for name, file in places.items()}

    def __getitem__(self, name: str) -> Tensor:
        # Of the whole file, which is mapped into memory, nothing stays there once it is closed and the tensor copied.
        with torch.device("cpu"), safe_open(self.places[name], "pt") as opened:
            return opened.get_tensor(self.wrapper + name).to(torch.get_default_dtype(), copy=True)

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def read_state(path: Path, *parts: Path) -> Mapping[str, Tensor]:
    """A state dict from safetensors, of which there may be several, or from a .pt file of plain tensors. Raises
    ValueError for any other file."""
    if path.suffix == ".safetensors":
        try:
            return TensorFiles([path, *parts])
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} cannot be read as weights: {first_line(error)}") from None
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    state = load_tensors(path)
    for inner in ("ema", "model", "state_dict"):  # training checkpoints of the original code hold several
        if isinstance(state, dict) and isinstance(state.get(inner), dict):
            state = state[inner]
    check_weights(state, str(path))
    wrapper = wrapper_of(state)
    return {name.removeprefix(wrapper): tensor for name, tensor in state.items()}


def wrapper_of(names: Iterable[str]) -> str:
    """What wrappers put before every name, to be taken away: DDP module., torch.compile _orig_mod., and the name of a
    model inside another, alone or one after the other; "" where there is none."""
    left, found = list(names), ""
    while left:
        first = left[0].partition(".")[0] + "."
        if first not in WRAPPERS or not all(name.startswith(first) for name in left):
            break
        found, left = found + first, [name.removeprefix(first) for name in left]
    return found


def read_folder(folder: Path) -> nn.Module:
    """The backbone of a diffusers folder: of a transformer, or of a whole pipeline that has one. Shards are joined."""
    if (folder / "transformer" / "config.json").is_file():
        folder = folder / "transformer"
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no diffusers folder: it has no config.json")
    config = read_json(folder / "config.json")
    check_plain(config, str(folder / "config.json"))
    kind = str(config.get("_class_name"))
    if kind == "Transformer2DModel":
        kind = OLDER.get(str(config.get("norm_type")), kind)
    reader = READERS.get(kind)
    if reader is None:
        raise ValueError(f"{folder} holds a {kind}; known are {', '.join(READERS)}")
    state = read_state(*weight_files(folder))
    for name, value in config.items():  # before a network is made of it, block by block
        if name.startswith("num_layers") and not (isinstance(value, int) and 0 < value <= len(state)):
            raise ValueError(f"{folder / 'config.json'}: {name}={value} does not fit the weights that are there")
    try:
        with torch.device("meta"):  # the weights that are read take the place of those a network is made with
            return reader(config, state)
    except KeyError as error:
        raise ValueError(f"{folder / 'config.json'} is of no {kind}: it has no {error}") from None
    except (TypeError, IndexError, ArithmeticError, RuntimeError) as error:  # of values that no network can be made of
        raise ValueError(f"{folder / 'config.json'} describes no {kind}: {first_line(error)}") from None


def weight_files(folder: Path) -> list[Path]:
    """The files that a diffusers folder's weights are in: those that its index lists, or the one of the usual name."""
    index = folder / f"{WEIGHTS}.index.json"
    if index.is_file():
        held = read_json(index)
        check_value(held, Mapping[str, Any], str(index))
        check_value(held.get("weight_map"), Mapping[str, str], f"{index}: weight_map")
        return [folder / name for name in sorted(set(held["weight_map"].values()))]
    for name in (WEIGHTS, "diffusion_pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
    raise ValueError(f"{folder} has no {WEIGHTS}, nor an index of its parts")


def read_backbone(where: str | Path) -> nn.Module:
    """A backbone of ours from a diffusers folder, or from an original DiT or SiT file."""
    path = Path(where)
    if path.is_dir():
        return read_folder(path)
    if path.is_file():
        state = read_state(path)
        try:
            with torch.device("meta"):
                return dit.from_original(state)
        except (TypeError, ArithmeticError, RuntimeError) as error:
            raise ValueError(f"{path} is no DiT or SiT of the original code: {first_line(error)}") from None
    raise ValueError(f"{where}: no such file or folder")


def initialize(backbone: nn.Module, where: str | Path) -> None:
    """Starts a backbone from a diffusers folder or an original file. It may be on the meta device: all its weights are
    replaced. Raises ValueError when they are of another model."""
    made = read_backbone(where)
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
            f"the weights of init={where} were made for other settings of the backbone: {'; '.join(differing)}; set "
            f"them in the config, such as backbone.time_shift=1"
        )
    backbone.load_state_dict(made.state_dict(), assign=True)


def settings(net: nn.Module) -> dict[str, Any]:
    """The kinds of its parts and the plain numbers and words that a network computes by, besides its weights; eps of
    norms left out."""
    found: dict[str, Any] = {}
    for name, module in net.named_modules():
        found[name or "backbone"] = type(module).__name__
        for key, value in vars(module).items():
            plain = isinstance(value, (int, float, str, type(None))) and not key.startswith("_")
            if plain and key not in ("training", "eps"):
                found[f"{name}.{key}".lstrip(".")] = value
    return found


def write_original(backbone: nn.Module, folder: Path, sample_size: int) -> None:
    """model.pt with the state dict that the original DiT and SiT code loads, for latents of that side in cells."""
    if not isinstance(backbone, DiT):
        raise ValueError(f"the original code knows DiT and SiT alone, not a {type(backbone).__name__}")
    with replacing(folder / "model.pt") as growing:
        torch.save(dit.to_original(backbone, sample_size), growing)


def write_folder(backbone: nn.Module, folder: Path, sample_size: int) -> None:
    """A diffusers folder: config.json and safetensors. sample_size: the side of the latents, in cells."""
    writer = WRITERS.get(type(backbone))
    if writer is None:
        known = ", ".join(kind.__name__ for kind in WRITERS)
        raise ValueError(f"diffusers has no class for a {type(backbone).__name__}; what it has is {known}")
    write_model(folder, *writer(backbone, sample_size))


def write_model(folder: Path, config: Mapping[str, Any], state: State) -> None:
    """config.json and safetensors, as diffusers lays out a model."""
    write_atomic(folder / "config.json", json.dumps(config, indent=2) + "\n")
    with replacing(folder / WEIGHTS) as growing:
        save_file(state, growing, metadata={"format": "pt"})
