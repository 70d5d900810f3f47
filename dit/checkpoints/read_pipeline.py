"""A whole pipeline of diffusers as parts of dit: `DiTPipeline`, `PixArtAlphaPipeline`, `PixArtSigmaPipeline` and
`StableDiffusion3Pipeline`."""

from __future__ import annotations

from pathlib import Path as Folder
from typing import Any, NamedTuple

import torch
from torch import nn

from dit.checkpoints.foreign import read_folder
from dit.checkpoints.pipeline_folder import INDEX, PREDICTIONS
from dit.diffusion.path import DiscreteBetas, Linear, Path, linear_betas, scaled_linear_betas, zero_terminal_snr
from dit.diffusion.prediction import Flow, LearnedRange, Prediction, timestep
from dit.encoders.autoencoder import PretrainedAutoencoder
from dit.encoders.classes import ClassEncoder
from dit.encoders.huggingface import T5Text
from dit.encoders.joined import stable_diffusion_3
from dit.files import read_json
from dit.plain_values import check_plain
from dit.types import Autoencoder, TextEncoder

TIME = "dit.diffusion.time"
TEXT_LENGTH = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300, "StableDiffusion3Pipeline": 256}


class Parts(NamedTuple):
    """sample_size: the side of the latents, in cells. sampler, grid: the scheduler's own way to sample, as the name of
    a sampler of conf/ and as a plain config."""

    backbone: nn.Module
    path: Path
    prediction: Prediction
    text_encoder: TextEncoder
    autoencoder: Autoencoder
    sample_size: int
    sampler: str
    grid: dict[str, Any]


def read_pipeline(folder: Folder, dtype: str = "float32") -> Parts:
    """Reads a folder of one of the pipelines above. dtype: of its text encoders and autoencoder.

    Raises ValueError for another pipeline, a scheduler that no path of dit is, or a part that is missing or broken.
    """
    index = described(folder / INDEX)
    kind = str(index.get("_class_name"))
    if kind not in (*TEXT_LENGTH, "DiTPipeline"):
        known = ", ".join(["DiTPipeline", *TEXT_LENGTH])
        raise ValueError(f"{folder} is a {kind}: dit reads {known}; evaluate.py model={folder} scores any pipeline")
    transformer = described(folder / "transformer" / "config.json")
    path, prediction, sampler, grid = scheduled(folder / "scheduler" / "scheduler_config.json")
    outputs = int(transformer.get("out_channels") or transformer["in_channels"])
    prediction = LearnedRange(prediction) if outputs == 2 * int(transformer["in_channels"]) else prediction
    return Parts(
        read_folder(folder),
        path,
        prediction,
        text_encoder(folder, kind, index, dtype),
        PretrainedAutoencoder(str(folder / "vae"), dtype=dtype),
        int(transformer["sample_size"]),
        sampler,
        grid,
    )


def described(file: Folder) -> dict[str, Any]:
    """A JSON object of plain values."""
    config = read_json(file)
    check_plain(config, str(file))
    return config


def text_encoder(folder: Folder, kind: str, index: dict[str, Any], dtype: str) -> TextEncoder:
    """The pipeline's own. Raises ValueError if the folder has none."""
    if kind == "DiTPipeline":
        names = {int(place): str(name) for place, name in index.get("id2label", {}).items() if name}
        return ClassEncoder([names.get(place, str(place)) for place in range(max(names, default=999) + 1)])
    if not (folder / "text_encoder").is_dir():
        raise ValueError(f"{folder} has no text_encoder; load its backbone alone with init={folder}")
    if kind == "StableDiffusion3Pipeline":
        return stable_diffusion_3(str(folder), TEXT_LENGTH[kind], dtype)
    return T5Text(str(folder), TEXT_LENGTH[kind], "text_encoder", "tokenizer", dtype)


def scheduled(file: Folder) -> tuple[Path, Prediction, str, dict[str, Any]]:
    """A scheduler's path, prediction, sampler and grid."""
    config = described(file)
    kind = str(config.get("_class_name"))
    if kind == "FlowMatchEulerDiscreteScheduler":
        grid: dict[str, Any] = {"_target_": f"{TIME}.UniformTime"}
        shift = float(config.get("shift", 1.0))
        if shift != 1:
            grid = {"_target_": f"{TIME}.ShiftedGrid", "grid": grid, "factor": shift}
        return Linear(), Flow(), "euler", grid
    if kind not in ("DDIMScheduler", "DPMSolverMultistepScheduler", "DDPMScheduler"):
        raise ValueError(f"{file}: dit has no path for a {kind}; evaluate.py model=FOLDER scores any pipeline")
    spacing = config.get("timestep_spacing", "leading" if kind == "DDIMScheduler" else "linspace")
    ddim = kind != "DPMSolverMultistepScheduler"
    linspace = "Respaced" if ddim else "Linspace"
    name = {"leading": "Leading", "trailing": "Trailing", "linspace": linspace}[str(spacing)]
    grid = {"_target_": f"{TIME}.{name}", "total": int(config["num_train_timesteps"])}
    if name == "Leading":
        grid["offset"] = int(config.get("steps_offset", 0))
    predictions = {theirs: ours for ours, theirs in PREDICTIONS.items()}
    predicted = str(config.get("prediction_type", "epsilon"))
    if predicted not in predictions:
        raise ValueError(f"{file}: prediction_type={predicted} is not one of {', '.join(predictions)}")
    return DiscreteBetas(betas_of(config)), predictions[predicted](timestep), "ddim" if ddim else "dpmpp_2m", grid


def betas_of(config: dict[str, Any]) -> torch.Tensor:
    """(steps,) float64."""
    schedules = {"linear": linear_betas, "scaled_linear": scaled_linear_betas}
    schedule = str(config.get("beta_schedule", "linear"))
    if config.get("trained_betas") is not None:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float64)
    elif schedule in schedules:
        ends = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
        betas = schedules[schedule](int(config["num_train_timesteps"]), *ends)
    else:
        raise ValueError(f"beta_schedule={schedule} is not one of {', '.join(schedules)}")
    return zero_terminal_snr(betas) if config.get("rescale_betas_zero_snr") else betas
