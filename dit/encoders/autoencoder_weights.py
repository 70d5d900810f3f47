"""Autoencoders as others publish them: where their weights lie, and how those become a network of diffusers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dit.errors import first_line
from dit.files import ASSETS, read_json
from dit.hub import load_foreign
from dit.tensors import mismatches, refuse_mismatches

KINDS = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC")
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
HUB_NAME = re.compile(r"(?!\.)[\w.-]+(/[\w.-]+)+")
PREFIXES = ("first_stage_model.", "vae.")  # of the autoencoder inside the file of a whole model
ATTENTION = "mid_block.attentions.0"
RENAMED = (  # the words of CompVis' AutoencoderKL, and those of diffusers before 0.18, in those of diffusers now
    (r"\.down\.(\d+)\.", r".down_blocks.\1."),
    (r"(_blocks\.\d+)\.block\.", r"\1.resnets."),
    (r"\.(down|up)sample\.", r".\1samplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", f".{ATTENTION}.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", rf".{ATTENTION}.to_\1."),
    (rf"\.{ATTENTION}\.([qkv])(uery|ey|alue)\.", rf".{ATTENTION}.to_\1."),
    (rf"\.(mid\.attn_1\.proj_out|{ATTENTION}\.proj_attn)\.", f".{ATTENTION}.to_out.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
)


def load_network(path: str, config: Mapping[str, Any] | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """The frozen network that `path` names (see `find`), on the CPU.

    config: that of a single file with no config.json beside it. Raises ValueError in one line, with names, for what is
    missing, of another class or does not fit.
    """
    import diffusers

    weights, beside = find(path)
    told = read_config(beside, weights, config)
    kind = told.get("_class_name")
    if kind not in KINDS:
        raise ValueError(f"{beside} is the config of a {kind}; an autoencoder here is one of {', '.join(KINDS)}")
    if kind == "AutoencoderTiny":
        told.pop("block_out_channels", None)  # diffusers writes it there itself, and warns of it when it reads it
    try:
        with torch.device("meta"):  # no time and no random numbers for weights that are replaced at once
            net = getattr(diffusers, kind).from_config(told)
    except Exception as error:  # whatever diffusers stumbles over
        raise ValueError(f"{beside} describes no {kind} that can be built: {first_line(error)}") from None
    if (net.config.in_channels, net.config.get("out_channels", 3)) != (3, 3):
        raise ValueError(f"{weights} is an autoencoder of {net.config.in_channels} channels; pictures here have 3")
    state = {name: value.to(dtype) for name, value in read(weights).items()}
    if kind == "AutoencoderKL":
        state = {in_diffusers_words(name, len(net.config.up_block_types)): value for name, value in state.items()}
    net.load_state_dict(fitting(state, net.state_dict(), f"{weights} does not fit its {kind}"), assign=True)
    return net.eval().requires_grad_(False)


def find(path: str) -> tuple[Path, Path]:
    """The weights that `path` names and the config.json beside them, which a single file may lack.

    path: a folder in diffusers' layout; the name of one that ships with dit; a .safetensors file; or a name on the
    Hugging Face hub, `owner/model` or `owner/model/folder`, taken from the hub's local cache or else downloaded.
    """
    place = Path(path)
    for folder in (place, ASSETS / path):
        if (folder / CONFIG).is_file():
            if not (folder / WEIGHTS).is_file():
                raise ValueError(f"autoencoder folder {folder} lacks {WEIGHTS}; save the network there again")
            return folder / WEIGHTS, folder / CONFIG
    shipped = sorted(file.parent.name for file in ASSETS.glob(f"*/{WEIGHTS}"))
    remedy = (
        f"give a folder in diffusers' layout (of a pipeline its vae/), a .safetensors file, a name on the hub, or one "
        f"that ships with dit: {', '.join(shipped)}"
    )
    if place.is_dir():
        raise ValueError(f"autoencoder.path={path}: the folder has no {CONFIG}; {remedy}")
    if place.is_file():
        if place.suffix != ".safetensors":  # the others are pickles, which may hold code
            raise ValueError(f"autoencoder.path={path} is not a .safetensors file; {remedy}")
        return place, place.with_name(CONFIG)
    if not HUB_NAME.fullmatch(path):
        raise ValueError(f"autoencoder.path={path}: no such folder or file; {remedy}")
    return from_hub(path, remedy)


def from_hub(path: str, remedy: str) -> tuple[Path, Path]:
    """The weights and the config.json of a name on the hub."""
    from huggingface_hub import hf_hub_download

    owner, model, *inner = path.split("/")

    def load() -> tuple[Path, Path]:
        weights, config = (hf_hub_download(f"{owner}/{model}", "/".join([*inner, name])) for name in (WEIGHTS, CONFIG))
        return Path(weights), Path(config)

    what = f"autoencoder.path={path} is no folder or file here, and as a name on the hub"
    return load_foreign(load, what, remedy, remote=True)


def read_config(file: Path, weights: Path, given: Mapping[str, Any] | None) -> dict[str, Any]:
    if not file.is_file():
        if given is None:
            raise ValueError(
                f"{weights} has no {CONFIG} beside it, and a single file does not say what network it is of: put that "
                f"of the network there, or choose autoencoder=sd, sdxl, sd3, flux or tiny"
            )
        return dict(given)
    try:
        config = read_json(file)
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); save the network there again") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds no settings of a network; save the network there again")
    return config


def read(file: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors file; of a whole model those of its autoencoder alone, without their prefix."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as weights:
            names = list(weights.keys())
            prefix = next((p for p in PREFIXES if any(name.startswith(p) for name in names)), "")
            mine = [name for name in names if name.startswith(prefix)]
            return {name.removeprefix(prefix): weights.get_tensor(name) for name in mine}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} cannot be read as safetensors ({error}); copy or download it again") from None


def in_diffusers_words(name: str, stages: int) -> str:
    """A key of an AutoencoderKL, in whichever words, as diffusers names it. CompVis counts the stages upwards from the
    picture; diffusers counts those of the decoder from the latent."""
    name = re.sub(r"\.up\.(\d+)\.", lambda found: f".up_blocks.{stages - 1 - int(found[1])}.", name)
    for theirs, ours in RENAMED:
        name = re.sub(theirs, ours, name)
    return name


def fitting(state: dict[str, Tensor], wanted: dict[str, Tensor], fault: str) -> dict[str, Tensor]:
    """The state with its 1 x 1 convolutions flattened where a linear layer is wanted. Raises ValueError, naming the
    first few keys, unless it then has exactly the wanted ones in their shapes."""
    state = {
        name: value.flatten(1) if name in wanted and (value.dim(), wanted[name].dim()) == (4, 2) else value
        for name, value in state.items()
    }
    refuse_mismatches(fault, mismatches(wanted, state), "; use the config it was made with")
    return state
