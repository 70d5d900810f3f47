"""From a config, a run directory or a .ckpt file to objects: the networks of a run, with trained weights."""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dit.checkpoints.native import CONFIG, check_depth, checkpoints_of, find_checkpoint, load_backbone
from dit.config_check import check_config
from dit.pipeline import Pipeline
from dit.types import Autoencoder, TextEncoder

VOCABULARY = ("words", "names")  # settings of a text encoder that hold the words or classes of a run's captions


@dataclass(frozen=True)
class Run:
    """A trained run: its pipeline with trained weights, its config, the checkpoint file, and the step that the
    checkpoint was written at."""

    pipeline: Pipeline
    config: DictConfig
    path: Path
    step: int


def build_pipeline(
    cfg: DictConfig,
    autoencoder: Autoencoder | None = None,
    text_encoder: TextEncoder | None = None,
    device: str = "cpu",
) -> Pipeline:
    """The networks of a config, the backbone freshly initialised; the encoders are made unless they are given.

    device: of the backbone; meta for one whose weights are all to be replaced.
    """
    autoencoder = autoencoder or instantiate(cfg.autoencoder)
    text_encoder = text_encoder or instantiate(cfg.text_encoder)
    prediction = instantiate(cfg.prediction)
    latents = {"channels": autoencoder.channels, "outputs": prediction.outputs}
    with torch.device("meta"):  # what cannot be made, or held, is refused before it takes memory
        backbone = build_backbone(cfg.backbone, latents, text_encoder.sizes)
    if device != "meta":
        check_memory(backbone)
        with torch.device(device):
            backbone = build_backbone(cfg.backbone, latents, text_encoder.sizes)
    return Pipeline(
        backbone,
        instantiate(cfg.path),
        prediction,
        text_encoder,
        autoencoder,
        autoencoder.latent_shape(cfg.data.size, cfg.data.size),
        trained_with_null=trained_with_null(cfg),
    )


def check_memory(backbone: nn.Module) -> None:
    """Raises ValueError where the weights alone are more than this machine's memory."""
    size = sum(p.numel() * p.element_size() for p in backbone.parameters())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise ValueError(
            f"the backbone's weights take {size / 2**30:.0f} GiB, and this machine has {memory / 2**30:.0f} GiB of "
            f"memory: choose a smaller backbone.width or backbone.depth"
        )


def build_backbone(node: DictConfig, latents: dict[str, int], conditions: dict[str, int]) -> nn.Module:
    """A backbone that is told what it works on. A size of 1 output need not be known to it.

    Raises ValueError where it is made for other conditions than the encoder gives."""
    sizes = {name: size for name, size in (latents | conditions).items() if (name, size) != ("outputs", 1)}
    known = inspect.signature(get_object(node._target_)).parameters
    alien = [name for name in sizes if name not in known]
    short = [n for n, p in known.items() if p.default is p.empty and n not in sizes and n not in node]
    if alien or short:
        told = f"is told {', '.join(alien)} and does not take it" if alien else f"needs {', '.join(short)}"
        raise ValueError(
            f"backbone {node._target_} {told}: classes come from text_encoder=classes and go with "
            f"backbone=dit_tiny and the like, tokens come from every other text_encoder and go with text_dit_tiny, "
            f"pixart_tiny or mmdit_tiny"
        )
    return instantiate(node, **sizes)


def without_captions(run: DictConfig) -> bool:
    """Whether a run was trained on pictures without captions."""
    nothing = [run.text_encoder.get(name) for name in VOCABULARY if OmegaConf.is_list(run.text_encoder.get(name))]
    return run.data.get("captions") == "none" or any(len(known) == 0 for known in nothing)


def trained_with_null(run: DictConfig) -> bool:
    """Whether a run was trained both with captions and without, so that guidance has what to lead away from."""
    return run.caption_dropout > 0 and not without_captions(run)


def config_of(path: Path, checkpoint: dict[str, Any]) -> DictConfig:
    """The config of a diffusion run. A checkpoint names nothing but parts of dit in their places, so that making what
    it describes runs no code of its own."""
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


def load_run(where: str | Path, weights: str = "ema", device: str = "auto") -> Run:
    """Returns the run of a run directory or .ckpt file, its networks frozen and on `device`.

    weights: ema, raw, or the average of one decay, such as ema_0.999. The backbone is made on the meta device and takes
    memory only once the checkpoint has weights for all of it. Raises ValueError if there is no checkpoint that can be
    read, or none of a diffusion model.
    """
    return load_found(*find_checkpoint(where), weights, device)


def load_found(path: Path, checkpoint: dict[str, Any], weights: str = "ema", device: str = "auto") -> Run:
    """`load_run` of a checkpoint that has been read."""
    target = device_of(device)
    cfg = config_of(path, checkpoint)
    pipeline = build_pipeline(cfg, own_autoencoder(cfg, path), device="meta")
    adapt(pipeline, cfg)
    load_backbone(pipeline.backbone, checkpoint, weights)
    pipeline.backbone.eval().requires_grad_(False).to(target)
    pipeline.text_encoder.to(target)
    return Run(pipeline, cfg, path, int(checkpoint["global_step"]))


def adapt(pipeline: Pipeline, cfg: DictConfig) -> None:
    """Lets the config's adapter change the backbone: after its initial weights, before those of a checkpoint."""
    if cfg.get("adapter") is not None:
        pipeline.backbone = instantiate(cfg.adapter)(pipeline.backbone)


def merged_backbone(run: Run) -> nn.Module:
    """The trained backbone as one of its original architecture. Raises ValueError if its adapter cannot be merged."""
    adapter = run.config.get("adapter")
    return run.pipeline.backbone if adapter is None else instantiate(adapter).merge(run.pipeline.backbone)


def own_autoencoder(cfg: DictConfig, checkpoint: Path) -> Autoencoder | None:
    """The autoencoder that was fitted for a run, which its directory holds a copy of; None for a run with another.
    Raises ValueError where the copy is missing."""
    if cfg.get("fit_autoencoder") is None:
        return None
    folder = checkpoint.absolute().parents[1] / "autoencoder"
    if not folder.is_dir():
        raise ValueError(f"{checkpoint}: {folder}, the autoencoder of this run, is missing; copy its directory whole")
    return instantiate(cfg.autoencoder, path=str(folder))


def network_of(ckpt: str, weights: str = "ema") -> nn.Module:
    """The trained backbone of a run alone, as a second network for autoguidance."""
    return second_run(ckpt, weights).pipeline.backbone


def second_run(ckpt: str, weights: str = "ema") -> Run:
    """`load_run` of a run that guides another, on the CPU. It is read once, and again when its checkpoints change."""
    files = [file for file in [Path(ckpt), *checkpoints_of(Path(ckpt))] if file.is_file()]
    return _second_run(ckpt, weights, tuple((str(file), file.stat().st_mtime_ns) for file in files))


@cache
def _second_run(ckpt: str, weights: str, files: object) -> Run:
    return load_run(ckpt, weights, "cpu")


def check_second_network(guidance: DictConfig, run: DictConfig) -> None:
    """Raises ValueError where the second network of a guidance was trained for other latents, texts or noise."""
    if "network" not in guidance:
        return
    other = second_run(guidance.network.ckpt, guidance.network.get("weights", "ema")).config
    differing = [name for name in ("path", "prediction", "autoencoder", "text_encoder") if other[name] != run[name]]
    if differing:
        raise ValueError(
            f"guidance.network.ckpt={guidance.network.ckpt} differs from ckpt in its {' and '.join(differing)}: only a "
            f"run on the same latents, texts and noise can guide"
        )


def device_of(name: str) -> str:
    """auto is the GPU where there is one. Raises ValueError for one that is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device={name} is none; say auto, cpu, or a name such as cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device={name}: this machine has {torch.cuda.device_count()} CUDA devices; say device=auto")
    return name
