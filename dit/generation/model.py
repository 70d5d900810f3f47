"""The models of a call: from its config to pipelines, recipes and edits."""

from __future__ import annotations

import gc
import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from dit.build import without_captions
from dit.code_digest import code_digest
from dit.diffusion.editing import Edit, Resampled
from dit.errors import shortened, some
from dit.files import sha256_of
from dit.generation.work import Job
from dit.picture_files import read
from dit.pipeline import Pipeline, Recipe
from dit.plain_values import listed, plain
from dit.runs import Run, check_second_network, load_run, second_run
from dit.tensors import fingerprint
from dit.types import from_pixels, to_pixels

CODE = (  # that decides the pixels of a picture
    *("adapters", "backbones", "build", "checkpoints", "diffusion", "encoders", "layers", "pipeline", "precision"),
    *("generation/model", "generation/work", "hub", "picture_files", "runs", "tensors", "types"),
)


@dataclass(frozen=True)
class Model:
    """A model of a call, as `dit.generation.bulk.Painter`. about: its path, the step and the hash of its weights, the
    code, the recipe and the edit."""

    pipeline: Pipeline
    recipe: Recipe
    edit: Edit | None
    config: DictConfig
    about: Mapping[str, Any]

    def sample(self, jobs: Sequence[Job]) -> tuple[Tensor, float]:
        """Returns (N, 3, H, W) uint8, a picture for each job, and the network calls of one; all have the size of the
        first."""
        texts, seeds = [job.prompt for job in jobs], [job.seed for job in jobs]
        shape = None if self.edit is not None else self.pipeline.shape_of(jobs[0].size)
        samples = self.pipeline(texts, seeds, self.recipe, len(jobs), edit=self.edit, shape=shape)
        return finite_pixels(samples.images, seeds), samples.nfe

    def size_of(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """Returns (width, height) of the pictures of jobs of a size. Raises ValueError for one that the model cannot
        make."""
        shape = self.pipeline.shape_of(size) if self.edit is None else self.edit.x0.shape[1:]
        height, width = (side * self.pipeline.autoencoder.factor for side in shape[-2:])
        return width, height

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raises ValueError if there are prompts for a model that was trained without captions."""
        if without_captions(self.config) and any(prompts):
            raise ValueError(
                f"prompts={shortened(next(filter(None, prompts)))!r}: the model was trained on pictures without "
                f"captions and takes no prompt; leave prompts out"
            )


class Models:
    """The models of a config by number, of which one is in memory at a time."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg, self.paths = cfg, [str(path) for path in listed(cfg.ckpt, "ckpt")]
        self.number = -1
        self.model: Model | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __call__(self, number: int) -> Model:
        if self.model is None or self.number != number:
            self.model = None
            gc.collect()
            self.number, self.model = number, load_model(self.cfg, self.paths[number])
        return self.model


def loaded(cfg: DictConfig, ckpt: str, compile: bool = False) -> tuple[Run, dict[str, Any]]:
    """Returns the run of a checkpoint, ready to sample with the settings of a config, and what is recorded of it: path,
    step, and the hashes of weights and code."""
    run = load_run(ckpt, cfg.weights, cfg.device, cfg.trust, plain(cfg)["adapters"])
    run.scale_adapters(cfg.adapter_scale)
    if run.posthoc is not None:
        print(f"note: {cfg.weights}: {run.posthoc}", file=sys.stderr)
    run.pipeline.sample_in(cfg.precision, compile)
    weights = weights_hash(run, cfg.adapter_scale)
    return run, {"model": ckpt, "step": run.step, "weights": weights, "code": code_digest(*CODE)}


def model_without_edit(cfg: DictConfig, ckpt: str) -> Model:
    """Returns the model of a checkpoint with the recipe of a config. Raises ValueError for settings that do not fit
    it."""
    cfg = cfg.copy()
    run, about = loaded(cfg, ckpt, cfg.compile)
    cfg.grid = cfg.grid or run.config.grid
    cfg.guidance = guidance_of(cfg.guidance, run.config)
    check_second_network(cfg.guidance, run.config)
    recipe = instantiate(cfg.recipe)
    run.pipeline.check(recipe)
    return Model(run.pipeline, recipe, None, run.config, about | {"recipe": described(cfg)})


def load_model(cfg: DictConfig, ckpt: str) -> Model:
    """Returns the model of a checkpoint with the settings of a config of generate, as `model_without_edit`."""
    model = model_without_edit(cfg, ckpt)
    recipe, about = model.recipe, dict(model.about)
    if cfg.resample != 1:
        recipe = replace(recipe, sampler=Resampled(recipe.sampler, cfg.resample, cfg.stretch))
        model.pipeline.check(recipe)
        about["recipe"] |= {"resample": cfg.resample, "stretch": cfg.stretch}
    edit = edit_of(cfg, model.pipeline)
    if edit is not None:
        if cfg.size is not None:
            raise ValueError(f"size={cfg.size}: an edited picture keeps the size of image; leave size out")
        about["edit"] = edit_in_words(cfg)
    return replace(model, recipe=recipe, edit=edit, about=about)


def guidance_of(guidance: DictConfig, run: DictConfig) -> DictConfig:
    """Returns the guidance of the config, or that of the run with the config's changes."""
    if "_target_" in guidance:
        return guidance
    merged = OmegaConf.merge(run.guidance, {name: value for name, value in guidance.items() if value is not None})
    assert isinstance(merged, DictConfig)
    return merged


def finite_pixels(images: Tensor, seeds: Sequence[int]) -> Tensor:
    """Returns images (N, 3, H, W) in [-1, 1] of these seeds as uint8. Raises ValueError if some are not finite."""
    broken = [seed for seed, image in zip(seeds, images, strict=True) if not bool(image.isfinite().all())]
    if broken:
        raise ValueError(
            f"{len(broken)} of {len(images)} pictures are not finite, those of the seeds {some(map(str, broken), 3)}; "
            f"try precision=32, or other weights"
        )
    return to_pixels(images)


def edit_of(cfg: DictConfig, pipeline: Pipeline) -> Edit | None:
    """Returns the edit of a given picture, or None if the config has no `image`. Raises ValueError for options of an
    edit without a picture."""
    border = tuple(cfg.border)
    if cfg.image is None:
        given = [f"{name}={cfg[name]}" for name in ("mask", "strength", "source") if cfg[name] is not None]
        given += [f"border={list(border)}"] if any(border) else []
        if given:
            raise ValueError(f"{given[0]} edits a picture, and none is given: say image=FILE")
        return None
    image, mask = from_pixels(torch.from_numpy(read(cfg.image))), None
    if cfg.mask is not None:
        mask = torch.from_numpy(read(cfg.mask)).float().mean(0) / 255
    return pipeline.edit(image, strength_of(cfg), mask, border, cfg.source)


def strength_of(cfg: DictConfig) -> float:
    """Returns the strength of an edit: 1 with a mask or a border, 0.6 without, unless the config has another."""
    return cfg.strength if cfg.strength is not None else 1.0 if cfg.mask is not None or any(cfg.border) else 0.6


def edit_in_words(cfg: DictConfig) -> dict[str, Any]:
    """Returns the description of an edit, with the hashes of its files."""
    files = {f"{name}_sha256": sha256_of(cfg[name]) for name in ("image", "mask") if cfg[name] is not None}
    return files | {"strength": strength_of(cfg), "border": list(cfg.border), "source": cfg.source}


def weights_hash(run: Run, adapter_scale: float) -> str:
    """Returns 16 hex digits, a hash of all weights that decide a picture: backbone, adapters and their scales,
    autoencoder and text encoder."""
    pipeline = run.pipeline
    added = run.adapters.description if run.adapters is not None else []
    coder = [getattr(pipeline.autoencoder, name).flatten().tolist() for name in ("shift", "scale")]
    encoders = pipeline.autoencoder.fingerprint, coder, pipeline.text_encoder.fingerprint
    text = repr((fingerprint(pipeline.backbone), added, float(adapter_scale), encoders))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def described(cfg: DictConfig) -> dict[str, Any]:
    """Returns the recipe of a resolved config, without what has no effect, and the hash of the weights of a second
    network."""
    found = {name: value for name, value in plain(cfg.recipe).items() if name != "_target_" and value is not None}
    return found | second_network_of(cfg.guidance)


def second_network_of(guidance: DictConfig) -> dict[str, str]:
    """Returns the hash of the weights of a guidance's second network, or nothing if it has none."""
    if "network" not in guidance:
        return {}
    second = second_run(guidance.network.ckpt, guidance.network.get("weights", "ema"))
    return {"second_network": fingerprint(second.pipeline.backbone)}
