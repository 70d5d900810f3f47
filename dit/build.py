"""Builds the networks of a config, and the pipeline of them."""

from __future__ import annotations

import inspect

import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dit.devices import check_memory
from dit.pipeline import Pipeline
from dit.types import Autoencoder, TextEncoder

VOCABULARY = ("words", "names")  # settings of a text encoder that hold the words or classes of a run's captions


def build_pipeline(
    cfg: DictConfig,
    autoencoder: Autoencoder | None = None,
    text_encoder: TextEncoder | None = None,
    device: str = "cpu",
) -> Pipeline:
    """Builds the pipeline of a config with an initialised backbone. The encoders are built unless they are given.

    device: of the backbone; `meta` if all its weights are replaced later.
    """
    autoencoder = autoencoder or instantiate(cfg.autoencoder)
    text_encoder = text_encoder or instantiate(cfg.text_encoder)
    prediction = instantiate(cfg.prediction)
    latents = {"channels": autoencoder.channels, "outputs": prediction.outputs}
    with torch.device("meta"):  # errors are raised before memory is allocated
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
        size_conditions=bool(cfg.data.get("size_conditions", False)),
        largest_scale=cfg.objective.get("largest_scale"),
    )


def build_backbone(node: DictConfig, latents: dict[str, int], conditions: dict[str, int]) -> nn.Module:
    """Builds a backbone with the sizes of its inputs and outputs. `outputs` is not passed if it is 1.

    Raises ValueError if the backbone takes other conditions than the text encoder gives."""
    sizes = {name: size for name, size in (latents | conditions).items() if (name, size) != ("outputs", 1)}
    parameters = inspect.signature(get_object(node._target_)).parameters
    extra = [name for name in sizes if name not in parameters]
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in sizes and n not in node]
    if extra or missing:
        fault = f"does not take {', '.join(extra)}" if extra else f"needs {', '.join(missing)}"
        raise ValueError(
            f"backbone {node._target_} {fault}: text_encoder=classes gives classes, for backbone=dit_tiny and similar; "
            f"every other text_encoder gives tokens, for text_dit_tiny, pixart_tiny or mmdit_tiny"
        )
    return instantiate(node, **sizes)


def without_captions(run: DictConfig) -> bool:
    """Returns True if a run was trained on pictures without captions."""
    entries = [run.text_encoder.get(name) for name in VOCABULARY if OmegaConf.is_list(run.text_encoder.get(name))]
    return run.data.get("captions") == "none" or any(len(words) == 0 for words in entries)


def trained_with_null(run: DictConfig) -> bool:
    """Returns True if a run was trained with captions and with the null condition, which guidance needs."""
    return run.caption_dropout > 0 and not without_captions(run)
