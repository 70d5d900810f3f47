"""From a config to the objects of a run. Nothing here knows a model or a data set: the yaml names them."""

from __future__ import annotations

import inspect
import os
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dit.checkpoints.foreign import initialize
from dit.checkpoints.native import CONFIG, check_depth, checkpoints_of, find_checkpoint, load_backbone
from dit.cli.captions import close_vocabulary, is_open, trained_with_null
from dit.config_check import check_config
from dit.data.cache import Augmentation
from dit.data.module import LatentData, PictureData
from dit.pipeline import Pipeline
from dit.training.autoencoder import AutoencoderModule
from dit.training.clip import ClipModule
from dit.training.diffusion import DiffusionModule
from dit.types import Autoencoder, TextEncoder


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
    side, rest = divmod(cfg.data.size, autoencoder.factor)
    if rest or side < 1:
        raise ValueError(
            f"data.size={cfg.data.size} must be a multiple of the autoencoder's factor {autoencoder.factor}"
        )
    return Pipeline(
        backbone,
        instantiate(cfg.path),
        prediction,
        text_encoder,
        autoencoder,
        (autoencoder.channels, side, side),
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


def load_run(where: str | Path, weights: str = "ema", device: str = "auto") -> tuple[Pipeline, DictConfig, Path, int]:
    """A run directory or .ckpt file -> its pipeline with trained weights, its config, the file, and its step.

    The backbone is made on the meta device and takes memory only once the checkpoint has weights for all of it.
    """
    return load_found(*find_checkpoint(where), weights, device)


def load_found(
    path: Path, checkpoint: dict[str, Any], weights: str = "ema", device: str = "auto"
) -> tuple[Pipeline, DictConfig, Path, int]:
    """`load_run` of a checkpoint that has been read."""
    target = device_of(device)
    cfg = config_of(path, checkpoint)
    pipeline = build_pipeline(cfg, own_autoencoder(cfg, path), device="meta")
    load_backbone(pipeline.backbone, checkpoint, weights)
    pipeline.backbone.eval().requires_grad_(False).to(target)
    pipeline.text_encoder.to(target)
    return pipeline, cfg, path, int(checkpoint["global_step"])


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
    return second_run(ckpt, weights)[0].backbone


def second_run(ckpt: str, weights: str = "ema") -> tuple[Pipeline, DictConfig, Path, int]:
    """`load_run` of a run that guides another, on the CPU; it is read once, and again when its checkpoints change."""
    files = [file for file in [Path(ckpt), *checkpoints_of(Path(ckpt))] if file.is_file()]
    return _second_run(ckpt, weights, tuple((str(file), file.stat().st_mtime_ns) for file in files))


@cache
def _second_run(ckpt: str, weights: str, files: object) -> tuple[Pipeline, DictConfig, Path, int]:
    return load_run(ckpt, weights, "cpu")


def check_second_network(guidance: DictConfig, run: DictConfig) -> None:
    """Raises ValueError where the second network of a guidance was trained for other latents, texts or noise."""
    if "network" not in guidance:
        return
    other = second_run(guidance.network.ckpt, guidance.network.get("weights", "ema"))[1]
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


def listed(value: Any, name: str) -> list[Any]:
    """A value or a list of values from the config, as a list. Raises ValueError for an empty one."""
    found = list(value) if OmegaConf.is_list(value) else [value]
    if not found:
        raise ValueError(f"{name} is empty; give at least one")
    return found


def numbers(value: Any, name: str, kind: type[int] | type[float] = int) -> list[Any]:
    """A number or a list of numbers from the config, as a list. Raises ValueError for an empty or another one."""
    found = listed(value, name)
    for item in found:
        if isinstance(item, bool) or not isinstance(item, (int, kind)):
            raise ValueError(f"{name}={item} is not {'a whole number' if kind is int else 'a number'}")
    return found


def is_foreign(init: str | None) -> bool:
    """True for weights of other people, False for a run's or none."""
    return init is not None and Path(init).suffix != ".ckpt" and not (Path(init) / "checkpoints").is_dir()


def start_from(backbone: nn.Module, cfg: DictConfig) -> None:
    """init: the weights of a run of the same backbone, or of other people. Raises ValueError for those of another."""
    where = Path(cfg.init)
    if is_foreign(cfg.init):
        initialize(backbone, where)
        return
    _, checkpoint = find_checkpoint(where)
    held = checkpoint[CONFIG].get("backbone")
    other, own = held if isinstance(held, dict) else {}, OmegaConf.to_container(cfg.backbone, resolve=True)
    assert isinstance(own, dict)
    differing = [str(key) for key in {*other, *own} if other.get(key) != own.get(key)]
    if differing:
        raise ValueError(f"init={where} is of another backbone: it differs in {', '.join(sorted(differing))}")
    load_backbone(backbone, checkpoint)


def optimization(cfg: DictConfig) -> dict[str, Any]:
    """What every LightningModule of dit is told about its training."""
    return {"optimizer": instantiate(cfg.optimizer), "schedule": instantiate(cfg.lr_schedule), "seed": cfg.seed}


def diffusion(cfg: DictConfig, folder: Path | None = None) -> tuple[L.LightningModule, PictureData]:
    """A backbone on latents and text. An open vocabulary is closed here over the data's captions, in the config.

    folder: the run's directory, whose checkpoint is resumed where the config says so."""
    autoencoder = instantiate(cfg.autoencoder)  # before the data is read: what is missing is told at once
    text_encoder = None if is_open(cfg.text_encoder) else instantiate(cfg.text_encoder)
    data = instantiate(cfg.data.module)
    close_vocabulary(cfg, [*data.train.captions, *data.val.captions], folder)
    pipeline = build_pipeline(cfg, autoencoder, text_encoder, device="meta" if is_foreign(cfg.init) else "cpu")
    if cfg.init is not None:
        start_from(pipeline.backbone, cfg)
    pipeline.sample_in(cfg.sampling.precision, cfg.sampling.compile)
    pipeline.check(instantiate(cfg.recipe))  # what previews cannot draw should not be trained first
    assert isinstance(data, LatentData)
    data.encode_with(pipeline.autoencoder, pipeline.text_encoder, cfg.cache_dir, augmentation_of(cfg))
    objective = instantiate(cfg.objective, path=pipeline.path, prediction=pipeline.prediction)
    module = DiffusionModule(
        pipeline, objective, caption_dropout=cfg.caption_dropout, compile=cfg.compile, **optimization(cfg)
    )
    return module, data


def augmentation_of(cfg: DictConfig) -> Augmentation:
    """What a data set's config says of it, where it says anything."""
    return Augmentation(**{name: cfg.data[name] for name in ("flip", "posterior") if name in cfg.data})


def pictures(cfg: DictConfig) -> PictureData:
    """The data of a task that trains on pictures themselves."""
    if (asked := augmentation_of(cfg)) != Augmentation():
        raise ValueError(
            f"data.flip={asked.flip} data.posterior={asked.posterior}: task={cfg.task} trains on the pictures "
            f"themselves and has no latents to choose from; leave them at false and mode"
        )
    return instantiate(cfg.data.module)


def autoencoder(cfg: DictConfig, folder: Path | None = None) -> tuple[L.LightningModule, PictureData]:
    """An AutoencoderKL on pictures."""
    options = instantiate(cfg.module, _convert_="all")
    return AutoencoderModule(**options, **optimization(cfg)), pictures(cfg)


def clip(cfg: DictConfig, folder: Path | None = None) -> tuple[L.LightningModule, PictureData]:
    """A tiny open_clip model on captioned pictures."""
    data = pictures(cfg)
    options = instantiate(cfg.module, _convert_="all")
    return ClipModule(data.train.captions, **options, **optimization(cfg)), data


TASKS = {"diffusion": diffusion, "autoencoder": autoencoder, "clip": clip}
