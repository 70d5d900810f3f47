"""A whole pipeline of diffusers as parts of dit: `DiTPipeline`, `PixArtAlphaPipeline`, `PixArtSigmaPipeline`,
`StableDiffusion3Pipeline` and `FluxPipeline`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from pathlib import Path as Folder
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from dit.backbones.flux import Flux
from dit.checkpoints.foreign import read_folder
from dit.checkpoints.pipeline_folder import INDEX, PREDICTIONS
from dit.diffusion.path import DiscreteBetas, Linear, Path, linear_betas, scaled_linear_betas, zero_terminal_snr
from dit.diffusion.prediction import Flow, LearnedRange, Prediction, timestep
from dit.encoders.autoencoder import PretrainedAutoencoder
from dit.encoders.classes import ClassEncoder
from dit.encoders.huggingface import T5Text
from dit.encoders.joined import flux, stable_diffusion_3
from dit.files import read_json
from dit.plain_values import check_plain
from dit.types import Autoencoder, TextEncoder

Option = TypeVar("Option")

TIME, GUIDANCE, RESOLUTION = "dit.diffusion.time", "dit.diffusion.guidance", "dit.diffusion.resolution"
TEXT_LENGTH = {
    "PixArtAlphaPipeline": 120,
    "PixArtSigmaPipeline": 300,
    "StableDiffusion3Pipeline": 256,
    "FluxPipeline": 512,
}
FLUX_SIDE = 128  # cells: FluxPipeline samples 1024 x 1024 pixels by default


# The settings of diffusers' schedulers that change the samples and have one value in dit.
FIXED_SETTINGS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"clip_sample": False, "thresholding": False, "set_alpha_to_one": True},
    "DDPMScheduler": {"clip_sample": False, "thresholding": False},
    "DPMSolverMultistepScheduler": {
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "solver_type": "midpoint",
        "thresholding": False,
        "euler_at_final": False,
        "final_sigmas_type": "zero",
        "lambda_min_clipped": -math.inf,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "use_lu_lambdas": False,
        "use_flow_sigmas": False,
        "use_dynamic_shifting": False,
    },
    "FlowMatchEulerDiscreteScheduler": {
        "num_train_timesteps": 1000,
        "use_dynamic_shifting": False,
        "invert_sigmas": False,
        "shift_terminal": None,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "stochastic_sampling": False,
    },
}
# timestep_spacing -> grid. What is absent has other indices, or steps that do not follow them, in diffusers.
SPACINGS = {
    "DDIMScheduler": {"leading": "Leading", "trailing": "Trailing"},
    "DDPMScheduler": {"leading": "Leading", "trailing": "Trailing", "linspace": "Respaced"},
    "DPMSolverMultistepScheduler": {"linspace": "Linspace", "trailing": "Trailing"},
}
DDPM_SAMPLERS = {"fixed_small": "ddpm", "fixed_small_log": "ddpm", "learned_range": "ddpm_learned"}  # variance_type


class Parts(NamedTuple):
    """sample_size: the side of the latents, in cells. sampler, grid: the scheduler's own way to sample, as the name of
    a sampler of conf/ and as a plain config. guidance: the plain config of the guidance; steps: their usual number."""

    backbone: nn.Module
    path: Path
    prediction: Prediction
    text_encoder: TextEncoder
    autoencoder: Autoencoder
    sample_size: int
    sampler: str
    grid: dict[str, Any]
    guidance: dict[str, Any]
    steps: int


def read_pipeline(folder: Folder, dtype: str = "float32") -> Parts:
    """Reads a folder of one of the pipelines above. dtype: of its text encoders and autoencoder.

    Raises ValueError for another pipeline, a scheduler that no path of dit is or whose settings dit does not sample
    with, and a part that is missing or broken.
    """
    index = read_config(folder / INDEX)
    kind = str(index.get("_class_name"))
    if kind not in (*TEXT_LENGTH, "DiTPipeline"):
        known = ", ".join(["DiTPipeline", *TEXT_LENGTH])
        raise ValueError(f"{folder} is a {kind}: dit reads {known}; evaluate.py model={folder} scores any pipeline")
    is_flux = kind == "FluxPipeline"
    path, prediction, sampler, grid = read_scheduler(folder / "scheduler" / "scheduler_config.json", is_flux)
    backbone, file = read_folder(folder), folder / "transformer" / "config.json"
    transformer = read_config(file)
    channels = whole_number(transformer, "in_channels", file)
    outputs = channels if transformer.get("out_channels") is None else whole_number(transformer, "out_channels", file)
    return Parts(
        backbone,
        path,
        LearnedRange(prediction) if outputs == 2 * channels else prediction,
        text_encoder(folder, kind, index, dtype),
        PretrainedAutoencoder(str(folder / "vae"), dtype=dtype),
        FLUX_SIDE if is_flux else whole_number(transformer, "sample_size", file),
        sampler,
        grid,
        *usual_recipe(backbone),
    )


def usual_recipe(backbone: nn.Module) -> tuple[dict[str, Any], int]:
    """Returns the guidance and the number of steps that a pipeline is usually sampled with."""
    if not isinstance(backbone, Flux):
        return {"_target_": f"{GUIDANCE}.ClassifierFree", "scale": 4.0}, 50
    if backbone.guidance is None:  # FLUX.1-schnell
        return {"_target_": f"{GUIDANCE}.ClassifierFree", "scale": 1.0}, 4
    return {"_target_": f"{GUIDANCE}.Embedded", "scale": backbone.guidance_scale}, 28


def read_config(file: Folder) -> dict[str, Any]:
    """Reads a JSON object of plain values; infinite numbers are allowed, as diffusers writes them."""
    config = read_json(file, nan=True)
    check_plain(config, str(file))
    return config


def whole_number(config: dict[str, Any], key: str, file: Folder) -> int:
    value = config.get(key)
    if type(value) is not int or value < 0:
        raise ValueError(f"{file}: {key}={value!r} must be a whole number, 0 or more")
    return value


def number(config: dict[str, Any], key: str, file: Folder) -> float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{file}: {key}={value!r} must be a finite number")
    return float(value)


def text_encoder(folder: Folder, kind: str, index: dict[str, Any], dtype: str) -> TextEncoder:
    """Returns the pipeline's text encoder. Raises ValueError if the folder has none."""
    if kind == "DiTPipeline":
        labels = index.get("id2label") or {}
        if type(labels) is not dict or not all(place.isdecimal() for place in labels):
            raise ValueError(f"{folder / INDEX}: id2label must map the numbers of classes to their names")
        names = {int(place): str(name) for place, name in labels.items() if name}
        return ClassEncoder([names.get(place, str(place)) for place in range(max(names, default=999) + 1)])
    if not (folder / "text_encoder").is_dir():
        raise ValueError(f"{folder} has no text_encoder; load its backbone alone with init={folder}")
    if kind == "StableDiffusion3Pipeline":
        return stable_diffusion_3(str(folder), TEXT_LENGTH[kind], dtype)
    if kind == "FluxPipeline":
        return flux(str(folder), TEXT_LENGTH[kind], dtype)
    return T5Text(str(folder), TEXT_LENGTH[kind], "text_encoder", "tokenizer", dtype)


def read_scheduler(file: Folder, by_resolution: bool = False) -> tuple[Path, Prediction, str, dict[str, Any]]:
    """Returns a scheduler's path, prediction, sampler and grid. Settings that the file does not have take diffusers'
    defaults. A trailing spacing equals diffusers' for numbers of steps that divide `num_train_timesteps`.
    by_resolution: the pipeline supports FLUX's shift of times by the resolution.

    Raises ValueError for settings that no sampler of dit samples with.
    """
    config = read_config(file)
    kind = str(config.get("_class_name"))
    if kind not in FIXED_SETTINGS:
        raise ValueError(f"{file}: dit has no path for a {kind}; evaluate.py model=FOLDER scores any pipeline")
    config = default_settings(kind) | config
    shift = None
    if by_resolution and kind == "FlowMatchEulerDiscreteScheduler" and config["use_dynamic_shifting"]:
        shift, config["use_dynamic_shifting"] = shift_by_resolution(config, file), False
    for key, fixed in FIXED_SETTINGS[kind].items():
        if config[key] != fixed:
            raise ValueError(
                f"{file}: dit samples with {key}={fixed!r} only, not {config[key]!r}; "
                "evaluate.py model=FOLDER scores any pipeline"
            )
    if kind == "FlowMatchEulerDiscreteScheduler":
        grid: dict[str, Any] = {"_target_": f"{TIME}.UniformTime"}
        factor = number(config, "shift", file)
        if shift is not None:
            grid = {"_target_": f"{RESOLUTION}.ResolutionGrid", "grid": grid, "shift": shift}
        elif factor != 1:
            grid = {"_target_": f"{TIME}.ShiftedGrid", "grid": grid, "factor": factor}
        return Linear(), Flow(), "euler", grid
    spacing = choice(config, "timestep_spacing", SPACINGS[kind], file)
    grid = {"_target_": f"{TIME}.{spacing}", "total": whole_number(config, "num_train_timesteps", file)}
    if spacing == "Leading":
        grid["offset"] = whole_number(config, "steps_offset", file)
    prediction = choice(config, "prediction_type", {theirs: ours for ours, theirs in PREDICTIONS.items()}, file)
    if kind == "DDPMScheduler":
        sampler = choice(config, "variance_type", DDPM_SAMPLERS, file)
    else:
        sampler = "ddim" if kind == "DDIMScheduler" else "dpmpp_2m"
    return DiscreteBetas(read_betas(config, file)), prediction(timestep), sampler, grid


def shift_by_resolution(config: dict[str, Any], file: Folder) -> dict[str, Any]:
    """Returns FLUX's shift by the resolution as a plain config; there, a token is of 2 x 2 cells."""
    choice(config, "time_shift_type", {"exponential": None}, file)
    return {
        "_target_": f"{RESOLUTION}.exponential_shift",
        "_partial_": True,
        "low": number(config, "base_shift", file),
        "high": number(config, "max_shift", file),
        "cells_low": 4 * whole_number(config, "base_image_seq_len", file),
        "cells_high": 4 * whole_number(config, "max_image_seq_len", file),
    }


def default_settings(kind: str) -> dict[str, Any]:
    import diffusers

    parameters = inspect.signature(getattr(diffusers, kind)).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


def choice(config: dict[str, Any], key: str, options: Mapping[str, Option], file: Folder) -> Option:
    value = str(config[key])
    if value not in options:
        raise ValueError(
            f"{file}: {key}={value} is not one of {', '.join(options)}, which dit samples with; "
            "evaluate.py model=FOLDER scores any pipeline"
        )
    return options[value]


def read_betas(config: dict[str, Any], file: Folder) -> torch.Tensor:
    """Returns the betas of the chain, (steps,) float64."""
    total = whole_number(config, "num_train_timesteps", file)
    if config["trained_betas"] is not None:
        trained = config["trained_betas"]
        if type(trained) is not list or len(trained) != total or not all(type(beta) is float for beta in trained):
            raise ValueError(f"{file}: trained_betas must be a list of num_train_timesteps={total} floats")
        betas = torch.tensor(trained, dtype=torch.float64)
    else:
        schedule = choice(config, "beta_schedule", {"linear": linear_betas, "scaled_linear": scaled_linear_betas}, file)
        betas = schedule(total, number(config, "beta_start", file), number(config, "beta_end", file))
    return zero_terminal_snr(betas) if config["rescale_betas_zero_snr"] else betas
