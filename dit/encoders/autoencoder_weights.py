"""Loads published autoencoder weights (folder, file or hub name) into a network of diffusers."""

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
PREFIXES = ("first_stage_model.", "vae.")  # of the autoencoder's keys in the file of a whole model
ATTENTION = "mid_block.attentions.0"
RENAMED = (  # keys of CompVis' AutoencoderKL and of diffusers before 0.18 -> keys of diffusers now
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
    """Returns the frozen network of `path` (see `find`), on the CPU.

    config: the network's config, for a single file with no config.json beside it. Raises ValueError if a file is
    missing, the class is not one of KINDS, or the weights do not fit; the message is one line with names.
    """
    import diffusers

    weights, beside = find(path)
    settings = read_config(beside, weights, config)
    kind = settings.get("_class_name")
    if kind not in KINDS:
        raise ValueError(f"{beside} is the config of a {kind}; an autoencoder here is one of {', '.join(KINDS)}")
    if kind == "AutoencoderTiny":
        settings.pop("block_out_channels", None)  # diffusers writes this key, and warns when it reads it
    try:
        with torch.device("meta"):  # no initialisation: the weights are replaced below
            net = getattr(diffusers, kind).from_config(settings)
    except Exception as error:  # diffusers raises many types
        raise ValueError(f"{beside} does not describe a valid {kind}: {first_line(error)}") from None
    if (net.config.in_channels, net.config.get("out_channels", 3)) != (3, 3):
        raise ValueError(f"{weights} is an autoencoder of {net.config.in_channels} channels; pictures here have 3")
    state = {name: value.to(dtype) for name, value in read(weights).items()}
    if kind == "AutoencoderKL":
        state = {diffusers_key(name, len(net.config.up_block_types)): value for name, value in state.items()}
    net.load_state_dict(checked_state(state, net.state_dict(), f"{weights} does not fit its {kind}"), assign=True)
    return net.eval().requires_grad_(False)


def find(path: str) -> tuple[Path, Path]:
    """Returns the paths of the weights and of the config.json beside them; for a single file it may not exist.

    path: a folder in diffusers' layout; the name of a folder that ships with dit; a .safetensors file; or a name on the
    Hugging Face hub, `owner/model` or `owner/model/folder`, read from the hub's local cache or else downloaded.
    Raises ValueError if there are no such files.
    """
    place = Path(path)
    for folder in (place, ASSETS / path):
        if (folder / CONFIG).is_file():
            if not (folder / WEIGHTS).is_file():
                raise ValueError(f"autoencoder folder {folder} lacks {WEIGHTS}; save the network to it again")
            return folder / WEIGHTS, folder / CONFIG
    shipped = sorted(file.parent.name for file in ASSETS.glob(f"*/{WEIGHTS}"))
    remedy = (
        f"give a folder in diffusers' layout (for a pipeline its vae/), a .safetensors file, a name on the hub, or one "
        f"that ships with dit: {', '.join(shipped)}"
    )
    if place.is_dir():
        raise ValueError(f"autoencoder.path={path}: the folder has no {CONFIG}; {remedy}")
    if place.is_file():
        if place.suffix != ".safetensors":  # other formats are pickles, which may run code
            raise ValueError(f"autoencoder.path={path} is not a .safetensors file; {remedy}")
        return place, place.with_name(CONFIG)
    if not HUB_NAME.fullmatch(path):
        raise ValueError(f"autoencoder.path={path}: no such folder or file; {remedy}")
    return from_hub(path, remedy)


def from_hub(path: str, remedy: str) -> tuple[Path, Path]:
    """Returns the paths of the weights and the config.json of a name on the hub."""
    from huggingface_hub import hf_hub_download

    owner, model, *inner = path.split("/")

    def load() -> tuple[Path, Path]:
        weights, config = (hf_hub_download(f"{owner}/{model}", "/".join([*inner, name])) for name in (WEIGHTS, CONFIG))
        return Path(weights), Path(config)

    what = f"autoencoder.path={path} is not a folder or file, and as a name on the hub"
    return load_foreign(load, what, remedy, remote=True)


def read_config(file: Path, weights: Path, given: Mapping[str, Any] | None) -> dict[str, Any]:
    if not file.is_file():
        if given is None:
            raise ValueError(
                f"{weights} has no {CONFIG} beside it, and a single file does not describe its network: put "
                f"the network's {CONFIG} there, or choose autoencoder=sd, sdxl, sd3, flux or tiny"
            )
        return dict(given)
    try:
        config = read_json(file)
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); save the network again") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} is not a config of a network; save the network again")
    return config


def read(file: Path) -> dict[str, Tensor]:
    """Returns the tensors of a .safetensors file; for a whole model only those of its autoencoder, without prefix."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as weights:
            names = list(weights.keys())
            prefix = next((p for p in PREFIXES if any(name.startswith(p) for name in names)), "")
            mine = [name for name in names if name.startswith(prefix)]
            return {name.removeprefix(prefix): weights.get_tensor(name) for name in mine}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} cannot be read as safetensors ({error}); copy or download it again") from None


def diffusers_key(name: str, stages: int) -> str:
    """Converts a key of any published AutoencoderKL to the name in diffusers. CompVis counts the decoder's stages from
    the picture; diffusers counts them from the latent."""
    name = re.sub(r"\.up\.(\d+)\.", lambda match: f".up_blocks.{stages - 1 - int(match[1])}.", name)
    for theirs, ours in RENAMED:
        name = re.sub(theirs, ours, name)
    return name


def checked_state(state: dict[str, Tensor], expected: dict[str, Tensor], fault: str) -> dict[str, Tensor]:
    """Returns the state dict with 1 x 1 convolutions flattened if the network has a linear layer there. Raises
    ValueError, with the first few keys, unless keys and shapes are then exactly the expected ones."""
    state = {
        name: value.flatten(1) if name in expected and (value.dim(), expected[name].dim()) == (4, 2) else value
        for name, value in state.items()
    }
    refuse_mismatches(fault, mismatches(expected, state), "; use the config of these weights")
    return state
