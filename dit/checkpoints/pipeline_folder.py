"""Export of a run as a diffusers pipeline: model_index.json, and a folder for each part of the run.

Each backbone has one pipeline and one scheduler of diffusers. If these do not support the run, e.g. its path, only the
transformer is written. Text encoders of other libraries than transformers are left out. Both are reported in one line.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path as Folder
from typing import Any, NamedTuple

import torch
from torch import nn

from dit.backbones.dit import DiT
from dit.backbones.flux import Flux
from dit.backbones.mmdit import MMDiT
from dit.backbones.pixart import PixArt
from dit.checkpoints.autoencoder import to_diffusers
from dit.checkpoints.foreign import write_folder, write_model
from dit.checkpoints.pipeline_texts import text_parts
from dit.diffusion.path import DiscreteBetas, Linear, linear_betas, scaled_linear_betas
from dit.diffusion.prediction import X0, Eps, Flow, LearnedRange, Prediction, V, scaled_time, timestep
from dit.diffusion.process import NetworkOutput, Process
from dit.diffusion.resolution import ResolutionGrid, exponential_shift
from dit.diffusion.time import Grid, Leading, ShiftedGrid, Trailing, UniformTime
from dit.encoders.classes import ClassEncoder
from dit.files import write_atomic
from dit.types import Autoencoder, TextEncoder

INDEX = "model_index.json"


class Kind(NamedTuple):
    """Diffusers' names of the parts, and the settings here that sample the same pictures."""

    pipeline: str
    transformer: str
    scheduler: str
    same: str


PIPELINES: dict[type[nn.Module], Kind] = {
    DiT: Kind("DiTPipeline", "DiTTransformer2DModel", "DDIMScheduler", "sampler=ddim grid={timestep_spacing}"),
    PixArt: Kind(
        "PixArtAlphaPipeline",
        "PixArtTransformer2DModel",
        "DPMSolverMultistepScheduler",
        "sampler=dpmpp_2m grid={timestep_spacing}, with clean_caption=False there and prompts in lower case here",
    ),
    MMDiT: Kind(
        "StableDiffusion3Pipeline",
        "SD3Transformer2DModel",
        "FlowMatchEulerDiscreteScheduler",
        "sampler=euler, with sigmas=numpy.linspace(1, 0, steps + 1)[:-1] there",
    ),
    Flux: Kind("FluxPipeline", "FluxTransformer2DModel", "FlowMatchEulerDiscreteScheduler", "sampler=euler"),
}
PREDICTIONS = {Eps: "epsilon", V: "v_prediction", X0: "sample"}


class NotExportable(Exception):
    """The reason why diffusers' pipeline does not support a run."""


def write_pipeline(
    folder: Folder,
    backbone: nn.Module,
    path: Process,
    prediction: NetworkOutput,
    grid: Grid,
    text_encoder: TextEncoder,
    autoencoder: Autoencoder,
    sample_size: int,
) -> list[str]:
    """Writes the parts of the backbone's pipeline that the run has, or only its transformer, to the folder.

    sample_size: the side of the latents, in cells. Returns lines for the user: what is left out, and how to sample.
    Raises ValueError for a backbone that diffusers has no class for.
    """
    try:
        scheduler = scheduler_of(backbone, path, prediction, grid)
        vae = to_diffusers(autoencoder, shifts=isinstance(backbone, MMDiT | Flux))
        if vae is None:
            raise NotExportable("its autoencoder is not an AutoencoderKL with latents that the pipeline can scale")
    except NotExportable as why:
        if (folder / INDEX).is_file():
            raise ValueError(
                f"out={folder} contains a pipeline, and this run has none: {why}; choose another folder"
            ) from None
        write_folder(backbone, folder, sample_size)
        how = f"sample it with the path {type(path).__name__} and the prediction {type(prediction).__name__}"
        return [f"only the transformer is written, because {why}; {how}"]
    (folder / INDEX).unlink(missing_ok=True)  # until all parts are written
    write_folder(backbone, folder / "transformer", sample_size)
    write_model(folder / "vae", *vae)
    write_atomic(folder / "scheduler" / "scheduler_config.json", json.dumps(scheduler, indent=2) + "\n")
    kind = PIPELINES[type(backbone)]
    index: dict[str, Any] = {"_class_name": kind.pipeline}
    names = {"transformer": kind.transformer, "scheduler": kind.scheduler, "vae": "AutoencoderKL"}
    index |= {name: ["diffusers", there] for name, there in names.items()}
    texts, notes = text_parts(backbone, text_encoder)
    for name, part in texts.items():
        write_theirs(part, folder / name)
        index[name] = ["transformers", type(part).__name__]
    if isinstance(text_encoder, ClassEncoder):
        index["id2label"] = {label: name for name, label in text_encoder.labels.items()}
    write_atomic(folder / INDEX, json.dumps(index, indent=2) + "\n")
    same = kind.same.format(**scheduler)
    return [f"{kind.pipeline}.from_pretrained samples from it what is sampled here with {same}", *notes]


def write_theirs(part: Any, folder: Folder) -> None:
    """Writes a network or a tokenizer of transformers. Raises ValueError if it cannot be written."""
    try:
        part.save_pretrained(folder)
    except OSError as error:
        raise ValueError(f"cannot write {folder}: {error.strerror or error}") from error


def scheduler_of(backbone: nn.Module, path: Process, prediction: NetworkOutput, grid: Grid) -> dict[str, Any]:
    """Returns the content of scheduler_config.json. Raises NotExportable if the backbone's pipeline in diffusers has no
    scheduler for the path."""
    if type(backbone) not in PIPELINES:
        raise NotExportable(f"diffusers has no pipeline for a {type(backbone).__name__}")
    pipeline, _, scheduler, _ = PIPELINES[type(backbone)]
    if not isinstance(prediction, Prediction):
        raise NotExportable(f"{pipeline} works on Gaussian paths only, not with {type(prediction).__name__}")
    c_noise = getattr(prediction.c_noise, "func", prediction.c_noise)
    config = {"_class_name": scheduler, "num_train_timesteps": 1000}
    if isinstance(backbone, MMDiT | Flux):
        if not (isinstance(path, Linear) and type(prediction) is Flow and c_noise is scaled_time):
            raise NotExportable(f"{pipeline} works on path=linear with prediction=flow only")
        if isinstance(backbone, Flux) and isinstance(grid, ResolutionGrid):
            return config | shift_by_resolution(grid)
        return config | {"shift": grid.factor if isinstance(grid, ShiftedGrid) else 1.0}
    mean = prediction.mean if isinstance(prediction, LearnedRange) else prediction
    if not isinstance(path, DiscreteBetas) or path.steps != 1000 or type(mean) not in PREDICTIONS:
        raise NotExportable(f"{pipeline} works on a chain of 1000 betas with a prediction of eps, v or x0 only")
    if c_noise is not timestep:
        raise NotExportable(
            f"{pipeline} conditions the network on the index in the chain, which is prediction.c_noise=timestep here"
        )
    config |= {"prediction_type": PREDICTIONS[type(mean)], **betas_of(path)}
    if scheduler == "DDIMScheduler":
        config |= {"clip_sample": False, "steps_offset": grid.offset if isinstance(grid, Leading) else 0}
    otherwise = "leading" if scheduler == "DDIMScheduler" else "linspace"
    return config | {"timestep_spacing": "trailing" if isinstance(grid, Trailing) else otherwise}


def shift_by_resolution(grid: ResolutionGrid) -> dict[str, Any]:
    """Returns the settings of FLUX's shift for a scheduler. Raises NotExportable for another shift or grid."""
    shift, given = getattr(grid.shift, "func", grid.shift), getattr(grid.shift, "keywords", {})
    if shift is not exponential_shift or not isinstance(grid.grid, UniformTime):
        raise NotExportable("FluxPipeline shifts uniform times by exponential_shift only, or by a fixed factor")
    bound = inspect.signature(exponential_shift).bind(0, **given)
    bound.apply_defaults()
    names = {"low": "base_shift", "high": "max_shift"}
    tokens = {"cells_low": "base_image_seq_len", "cells_high": "max_image_seq_len"}
    settings = {name: bound.arguments[ours] for ours, name in names.items()}
    return (
        settings | {name: bound.arguments[ours] // 4 for ours, name in tokens.items()} | {"use_dynamic_shifting": True}
    )


def betas_of(path: DiscreteBetas) -> dict[str, Any]:
    """Returns the settings of the betas for a scheduler: their name in diffusers, or each value."""
    betas = 1 - (path.alphas[1:] / path.alphas[:-1]) ** 2
    ends = [round(float(betas[place]), 10) for place in (0, -1)]
    for name, make in {"linear": linear_betas, "scaled_linear": scaled_linear_betas}.items():
        if torch.allclose(betas, make(path.steps, *ends), rtol=1e-6, atol=0):
            return {"beta_schedule": name, "beta_start": ends[0], "beta_end": ends[1]}
    return {"trained_betas": betas.tolist(), "rescale_betas_zero_snr": bool(path.alphas[-1] == 0)}
