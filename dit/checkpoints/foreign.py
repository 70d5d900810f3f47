"""Import and export of weights of other code: diffusers folders, and files of the original code of DiT, SiT, PixArt,
Stable Diffusion 3 and FLUX.1."""

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
from dit.backbones.flux import Flux
from dit.backbones.flux2 import Flux2
from dit.backbones.mmdit import MMDiT
from dit.backbones.pixart import PixArt
from dit.checkpoints import dit, flux, flux2, pixart, sd3
from dit.checkpoints.native import check_fit, check_weights
from dit.errors import first_line
from dit.files import read_json, replacing, write_atomic
from dit.plain_values import check_plain
from dit.tensors import load_tensors

State = dict[str, Tensor]
# diffusers' class name -> its import; our class -> its export to diffusers
READERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Tensor]], nn.Module]] = {
    "DiTTransformer2DModel": dit.from_diffusers,
    "PixArtTransformer2DModel": pixart.from_diffusers,
    "SD3Transformer2DModel": sd3.from_diffusers,
    "FluxTransformer2DModel": flux.from_diffusers,
    "Flux2Transformer2DModel": flux2.from_diffusers,
}
WRITERS: dict[type[nn.Module], Callable[[Any, int], tuple[dict[str, Any], State]]] = {
    DiT: dit.to_diffusers,
    PixArt: pixart.to_diffusers,
    MMDiT: sd3.to_diffusers,
    Flux: flux.to_diffusers,
    Flux2: flux2.to_diffusers,
}
# norm_type -> the class of what older folders call a Transformer2DModel
OLDER = {"ada_norm_zero": "DiTTransformer2DModel", "ada_norm_single": "PixArtTransformer2DModel"}
# a tensor that every file of the original code has -> its import
ORIGINALS: dict[str, Callable[[Mapping[str, Tensor]], nn.Module]] = {
    "y_embedder.embedding_table.weight": dit.from_original,
    "t_block.1.weight": pixart.from_original,
    "joint_blocks.0.x_block.attn.qkv.weight": sd3.from_original,
    "double_blocks.0.img_attn.qkv.weight": flux.from_original,
}
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "ema_model.", "diffusion_model.")
TRANSFORMER = "model.diffusion_model."  # of a file that also has the weights of autoencoder and text encoders
WEIGHTS = "diffusion_pytorch_model.safetensors"


class TensorFiles(Mapping[str, Tensor]):
    """The tensors of safetensors files by name, in torch's default dtype. Each is read on access, so that tensors that
    are not kept take no memory."""

    def __init__(self, files: Sequence[Path]) -> None:
        places: dict[str, Path] = {}
        for file in files:
            with safe_open(file, "pt") as opened:
                places |= dict.fromkeys(opened.keys(), file)
        held = transformer_names(places)
        self.wrapper = wrapper_of(held)
        self.places = {name.removeprefix(self.wrapper): places[name] for name in held}

    def __getitem__(self, name: str) -> Tensor:
        # The file is mapped into memory; after the copy and the close, none of it stays there.
        with torch.device("cpu"), safe_open(self.places[name], "pt") as opened:
            return opened.get_tensor(self.wrapper + name).to(torch.get_default_dtype(), copy=True)

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def read_state(path: Path, *parts: Path) -> Mapping[str, Tensor]:
    """Returns a state dict from one or several safetensors files, or from a .pt file of plain tensors. Raises
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
    held = transformer_names(state)
    wrapper = wrapper_of(held)
    return {name.removeprefix(wrapper): state[name] for name in held}


def transformer_names(names: Iterable[str]) -> list[str]:
    """Returns the names of a transformer's weights in a file that also has those of other networks; else all names."""
    found = list(names)
    return [name for name in found if name.startswith(TRANSFORMER)] or found


def wrapper_of(names: Iterable[str]) -> str:
    """Returns the prefix that wrappers add to every name: DDP's module., torch.compile's _orig_mod., the name of a
    model inside another, or several of these; "" if there is none."""
    left, found = list(names), ""
    while left:
        first = left[0].partition(".")[0] + "."
        if first not in WRAPPERS or not all(name.startswith(first) for name in left):
            break
        found, left = found + first, [name.removeprefix(first) for name in left]
    return found


def read_folder(folder: Path) -> nn.Module:
    """Returns the backbone of a diffusers folder: a transformer, or a pipeline with a transformer. Joins shards."""
    if (folder / "transformer" / "config.json").is_file():
        folder = folder / "transformer"
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a diffusers folder: it has no config.json")
    config = read_json(folder / "config.json")
    check_plain(config, str(folder / "config.json"))
    kind = str(config.get("_class_name"))
    if kind == "Transformer2DModel":
        kind = OLDER.get(str(config.get("norm_type")), kind)
    reader = READERS.get(kind)
    if reader is None:
        raise ValueError(f"{folder} contains a {kind}; use one of {', '.join(READERS)}")
    state = read_state(*weight_files(folder))
    for name, value in config.items():  # before the network is built block by block
        if name.startswith("num_layers") and not (isinstance(value, int) and 0 < value <= len(state)):
            raise ValueError(f"{folder / 'config.json'}: {name}={value} does not fit the weights in the folder")
    try:
        with torch.device("meta"):  # the loaded weights replace all initial weights
            return reader(config, state)
    except KeyError as error:
        raise ValueError(f"{folder / 'config.json'} is not of a {kind}: it has no {error}") from None
    except (TypeError, IndexError, ArithmeticError, RuntimeError) as error:  # for values that define no network
        raise ValueError(f"{folder / 'config.json'} does not describe a {kind}: {first_line(error)}") from None


def weight_files(folder: Path) -> list[Path]:
    """Returns the weight files of a diffusers folder: those that its index lists, or the one with the default name."""
    index = folder / f"{WEIGHTS}.index.json"
    if index.is_file():
        held = read_json(index)
        check_value(held, Mapping[str, Any], str(index))
        check_value(held.get("weight_map"), Mapping[str, str], f"{index}: weight_map")
        return [folder / name for name in sorted(set(held["weight_map"].values()))]
    for name in (WEIGHTS, "diffusion_pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
    raise ValueError(f"{folder} has no {WEIGHTS}, nor an index of shards")


def read_backbone(where: str | Path) -> nn.Module:
    """Returns a backbone from a diffusers folder, or from a file of the original code of DiT, SiT, PixArt, Stable
    Diffusion 3 or FLUX.1."""
    path = Path(where)
    if path.is_dir():
        return read_folder(path)
    if path.is_file():
        state = read_state(path)
        reader = next((reader for name, reader in ORIGINALS.items() if name in state), None)
        if reader is None:
            raise ValueError(
                f"{path} is not a file of the original code of DiT, SiT, PixArt, Stable Diffusion 3 or FLUX.1: it has "
                f"none of {', '.join(ORIGINALS)}"
            )
        try:
            with torch.device("meta"):
                return reader(state)
        except KeyError as error:
            raise ValueError(f"{path} is not a whole file of the original code: it has no {error}") from None
        except (TypeError, IndexError, ArithmeticError, RuntimeError) as error:  # for values that define no network
            raise ValueError(f"{path} is not a file of the original code: {first_line(error)}") from None
    raise ValueError(f"{where}: no such file or folder")


def initialize(backbone: nn.Module, where: str | Path) -> None:
    """Loads the weights of a diffusers folder or an original file into a backbone, which may be on the meta device: all
    its weights are replaced. Raises ValueError if they are of another model."""
    loaded = read_backbone(where)
    if type(loaded) is not type(backbone):
        classes = f"{type(loaded).__name__}, and the config's backbone a {type(backbone).__name__}"
        raise ValueError(f"init={where} is a {classes}: choose the backbone of these weights")
    check_fit(backbone.state_dict(), loaded.state_dict())
    theirs, ours = settings(loaded), settings(backbone)
    differing = [
        f"{name} is {theirs.get(name)}, not {value}" for name, value in ours.items() if theirs.get(name) != value
    ]
    if differing:
        raise ValueError(
            f"the weights of init={where} belong to other settings of the backbone: {'; '.join(differing)}; set "
            f"them in the config, such as backbone.time_shift=1"
        )
    backbone.load_state_dict(loaded.state_dict(), assign=True)


def settings(net: nn.Module) -> dict[str, Any]:
    """Returns the settings of a network besides its weights: the classes of its parts, and their plain numbers, strings
    and tuples, except eps of norms and the default of FLUX's guidance scale."""
    found: dict[str, Any] = {}
    for name, module in net.named_modules():
        found[name or "backbone"] = type(module).__name__
        for key, value in vars(module).items():
            plain = isinstance(value, (int, float, str, tuple, type(None))) and not key.startswith("_")
            if plain and key not in ("training", "eps", "guidance_scale"):
                found[f"{name}.{key}".lstrip(".")] = value
    return found


def write_original(backbone: nn.Module, folder: Path, sample_size: int) -> None:
    """Writes model.pt with the state dict that the original DiT and SiT code loads. sample_size: the side of the
    latents, in cells. Raises ValueError for another backbone."""
    if not isinstance(backbone, DiT):
        raise ValueError(f"the original code has DiT and SiT only, not a {type(backbone).__name__}")
    with replacing(folder / "model.pt") as growing:
        torch.save(dit.to_original(backbone, sample_size), growing)


def write_weights(backbone: nn.Module, folder: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes model.safetensors, the weights under their own names in one file, with metadata in its header."""
    with replacing(folder / "model.safetensors") as growing:
        save_file({name: tensor.contiguous() for name, tensor in backbone.state_dict().items()}, growing, metadata)


def write_folder(backbone: nn.Module, folder: Path, sample_size: int) -> None:
    """Writes a diffusers folder: config.json and safetensors. sample_size: the side of the latents, in cells.

    Raises ValueError for a backbone that diffusers has no class for.
    """
    writer = WRITERS.get(type(backbone))
    if writer is None:
        known = ", ".join(kind.__name__ for kind in WRITERS)
        raise ValueError(f"diffusers has no class for a {type(backbone).__name__}; it has classes for {known}")
    write_model(folder, *writer(backbone, sample_size))


def write_model(folder: Path, config: Mapping[str, Any], state: State) -> None:
    """Writes config.json and safetensors in the layout of a diffusers model."""
    write_atomic(folder / "config.json", json.dumps(config, indent=2) + "\n")
    with replacing(folder / WEIGHTS) as growing:
        save_file(state, growing, metadata={"format": "pt"})
