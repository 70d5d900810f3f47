"""What a run trains: from a config to a LightningModule and its data, for each task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from hydra.utils import instantiate
from omegaconf import DictConfig

from dit.data.cache import Augmentation
from dit.data.module import LatentData, PictureData
from dit.runs import adapt, build_pipeline, is_foreign, start_from
from dit.training.autoencoder import AutoencoderModule
from dit.training.clip import ClipModule
from dit.training.diffusion import DiffusionModule
from dit.training.vocabulary import close_vocabulary, is_open


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
    adapt(pipeline, cfg)
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
