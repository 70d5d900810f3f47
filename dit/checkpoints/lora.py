"""Low-rank adapters in files: of our runs, diffusers' LoRA files and folders, peft's folders, and kohya's files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dit.adapters.low_rank import LowRank, Update, peft_config
from dit.checkpoints.lora_names import FAMILIES, all_links, diffusers_links, to_ours, to_theirs
from dit.checkpoints.native import BASE, CONFIG, averages_of, find_checkpoint, is_run, weights_of
from dit.errors import first_line
from dit.files import read_json, replacing, write_atomic
from dit.plain_values import check_plain
from dit.tensors import refuse_mismatches

DIFFUSERS, PEFT, SETTINGS = "pytorch_lora_weights.safetensors", "adapter_model.safetensors", "adapter_config.json"
METADATA = "lora_adapter_metadata"  # diffusers' key of the settings in a file
PREFIXES = ("base_model.model.", "transformer.", "diffusion_model.")
UNDERSCORES = ("lora_unet_", "lora_transformer_")  # kohya's: dots are underscores in what follows
PARTS = {  # the end of a tensor's name -> the field of `Update`
    ".lora_A.weight": "a", ".lora_down.weight": "a", ".lora.down.weight": "a",
    ".lora_B.weight": "b", ".lora_up.weight": "b", ".lora.up.weight": "b",
    ".lora_magnitude_vector": "magnitude", ".lora_magnitude_vector.weight": "magnitude", ".dora_scale": "magnitude",
    ".lora_B.bias": "bias", ".alpha": "alpha",
}  # fmt: skip


def read_adapter(where: str | Path, network: nn.Module, base: str, weights: str = "ema") -> LowRank:
    """Returns the adapter of a run, a .safetensors file or a folder of diffusers or peft, for a network.

    base: the fingerprint of the network's weights without adapters. weights: those of a run, as `ema` or `raw`. Without
    an alpha in a file it is the rank, as in diffusers. Raises ValueError if there is no adapter, if it is of a run on
    other weights, and, with the names, if not all of it fits the network.
    """
    path = Path(where)
    if is_run(path):
        return of_run(path, network, base, weights)
    if path.is_dir():
        file = next((path / name for name in (DIFFUSERS, PEFT) if (path / name).is_file()), None)
        if file is None:
            raise ValueError(f"{path} is no folder of an adapter: it has neither {DIFFUSERS} nor {PEFT}")
        path = file
    tensors, metadata = read_tensors(path)
    settings = peft_settings(path, metadata)
    faults: dict[str, list[str]] = {"unknown": [], "missing": [], "of another shape": []}
    adapter = to_ours(network, parsed(tensors, settings, network, faults), faults)
    refuse_mismatches(f"the adapter {where} does not fit {type(network).__name__}", faults)
    if not adapter.updates:
        raise ValueError(f"the adapter {where} is empty: it has no update of a layer of {type(network).__name__}")
    return adapter


def of_run(where: Path, network: nn.Module, base: str, weights: str) -> LowRank:
    """Returns the adapter that a run has trained. Raises ValueError if it has none, or one of other weights."""
    path, checkpoint = find_checkpoint(where)
    trained = checkpoint.get(BASE)
    if trained is None:
        raise ValueError(f"{path} holds a whole network and no adapter: use ckpt={where}")
    if trained["fingerprint"] != base:
        raise ValueError(
            f"{path} is an adapter of other weights: {trained['path']}, {trained['fingerprint']}, and the model has "
            f"{base}; use it on its base, or export it (format=adapter) to use it on any network of these shapes"
        )
    if weights not in weights_of(checkpoint):
        raise ValueError(f"weights={weights} are not in {path}; it has {', '.join(weights_of(checkpoint))}")
    averages = averages_of(checkpoint)
    state = checkpoint["state_dict"]
    if weights != "raw":
        state = next(iter(averages.values())) if weights == "ema" else averages[weights]
    named = {name.removeprefix("backbone.").replace(".default", ""): tensor for name, tensor in state.items()}
    settings = checkpoint[CONFIG]["adapter"]
    if settings.get("conditions"):
        raise ValueError(
            f"{path} is an adapter with further inputs, {', '.join(settings['conditions']['names'])}, which another "
            f"network does not have: use ckpt={where}, and add other adapters to it"
        )
    faults: dict[str, list[str]] = {"unknown": [], "missing": [], "of another shape": []}
    known = {"lora_alpha": settings["alpha"], "use_rslora": settings.get("rank_stabilized", False)}
    adapter = to_ours(network, parsed(named, known, network, faults), faults)
    refuse_mismatches(f"the adapter {path} does not fit {type(network).__name__}", faults)
    return adapter


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the float32 tensors of a safetensors file, and its metadata."""
    try:
        with safe_open(path, "pt") as opened:
            return {name: opened.get_tensor(name).float() for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as an adapter (.safetensors): {first_line(error)}") from None


def peft_settings(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Returns peft's settings of a file: those in its metadata, or in the file next to it; {} if there are none."""
    if path.name == PEFT and (path.parent / SETTINGS).is_file():
        found = read_json(path.parent / SETTINGS)
    elif METADATA in metadata:
        try:
            held = json.loads(metadata[METADATA])
        except ValueError as error:
            raise ValueError(f"{path}: its {METADATA} cannot be read: {first_line(error)}") from None
        held = held if isinstance(held, dict) else {}
        found = {name.removeprefix("transformer."): value for name, value in held.items()}
    else:
        return {}
    check_plain(found, f"the settings of {path}")
    if found.get("peft_type", "LORA") != "LORA":
        raise ValueError(f"{path} is an adapter of peft_type={found['peft_type']}: only LORA is read")
    return dict(found)


def parsed(
    tensors: Mapping[str, Tensor], settings: Mapping[str, Any], network: nn.Module, faults: dict[str, list[str]]
) -> LowRank:
    """Returns the adapter in tensors by name, by the names of layers as in `all_links`. Adds names that are of no
    adapter to `faults`, and layers of which a part is missing."""
    known = all_links(network)
    underscored = {name.replace(".", "_"): name for name in known}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        end = next((end for end in PARTS if key.endswith(end)), None)
        layer = None if end is None else layer_of(key.removesuffix(end), known, underscored)
        if end is None or layer is None:
            faults["unknown"].append(key)
        else:
            parts.setdefault(layer, {})[PARTS[end]] = tensor
    found = {}
    for layer, held in parts.items():
        lacking = [name for name in needed(settings) if name not in held]
        faults["missing"] += [f"{layer}.{name}" for name in lacking]
        if not lacking:
            alpha = float(held.pop("alpha")) if "alpha" in held else alpha_of(layer, settings, len(held["a"]))
            lengths = held.pop("magnitude").flatten() if "magnitude" in held else None
            found[layer] = Update(**held, alpha=alpha, magnitude=lengths)
    if len({update.magnitude is None for update in found.values()}) > 1:
        faults["missing"] += [f"{layer}.magnitude" for layer, update in found.items() if update.magnitude is None]
    return LowRank(found, bool(settings.get("use_rslora")))


def needed(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the fields that every update must have."""
    return ("a", "b", "magnitude") if settings.get("use_dora") else ("a", "b")


def layer_of(name: str, known: Mapping[str, Any], underscored: Mapping[str, str]) -> str | None:
    """Returns the known layer of a name in a file, with a prefix of some library; None if there is none."""
    if name in known:
        return name
    for prefix in UNDERSCORES:
        if name.startswith(prefix):
            return underscored.get(name.removeprefix(prefix))
    bare = next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)
    return bare if bare in known else None


def alpha_of(layer: str, settings: Mapping[str, Any], rank: int) -> float:
    """Returns the alpha of a layer by peft's settings; its rank if they have none."""
    from peft.utils.other import get_pattern_key

    patterns, alpha = settings.get("alpha_pattern") or {}, settings.get("lora_alpha", rank)
    return float(patterns.get(get_pattern_key(list(patterns), layer), alpha))


def write_adapter(adapter: LowRank, network: nn.Module, folder: Path) -> str:
    """Writes an adapter of our layers as a folder that diffusers' pipeline loads, or peft's for a backbone whose
    pipeline has no `load_lora_weights`. Returns a sentence that says which.

    Raises ValueError for a layer that is no single layer of diffusers' class.
    """
    family, theirs = FAMILIES.get(type(network)), to_theirs(network, adapter)
    every = [name for link in diffusers_links(network) for name in link.theirs]
    names = list(theirs.updates)
    # A list, as other libraries write it, unless a name is also the end of another layer's.
    ambiguous = any(other.endswith(f".{name}") for name in names for other in every)
    config = peft_config(theirs, "|".join(names).replace(".", r"\.") if ambiguous else names).to_dict()
    settings = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    prefix = "transformer." if family is not None and family.loads else "base_model.model."
    tensors = {
        f"{prefix}{layer}.{ENDS[part]}": tensor.detach().cpu().contiguous().clone()  # q, k and v may have one `a`
        for layer, update in theirs.updates.items()
        for part, tensor in update.tensors.items()
    }
    if family is not None and family.loads:
        packed = json.dumps({f"transformer.{key}": value for key, value in settings.items()}, indent=2, sort_keys=True)
        with replacing(folder / DIFFUSERS) as growing:
            save_file(tensors, growing, metadata={"format": "pt", METADATA: packed})
        return f"{DIFFUSERS}, for load_lora_weights of diffusers' pipeline"
    write_atomic(folder / SETTINGS, json.dumps(settings, indent=2, sort_keys=True) + "\n")
    with replacing(folder / PEFT) as growing:
        save_file(tensors, growing, metadata={"format": "pt"})
    whose = f"dit's {type(network).__name__}" if family is None else f"diffusers' class of {type(network).__name__}"
    return f"a folder of peft, for PeftModel.from_pretrained on {whose}, whose pipeline has no load_lora_weights"


ENDS = {"a": "lora_A.weight", "b": "lora_B.weight", "magnitude": "lora_magnitude_vector", "bias": "lora_B.bias"}
