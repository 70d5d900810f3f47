"""Loads runs: from a config, a run directory or a .ckpt file to networks with trained weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dit.adapters.low_rank import merge
from dit.build import VOCABULARY, build_pipeline
from dit.checkpoints.adapters import Adapters, Entries, adapters_of, given_adapters
from dit.checkpoints.initial import adapt, initial, is_foreign, load_base, refuse_learned_token
from dit.checkpoints.native import BASE, checkpoints_of, config_of, find_checkpoint, load_backbone
from dit.checkpoints.pipeline_folder import INDEX
from dit.checkpoints.posthoc import Reconstruction, is_posthoc, reconstruct
from dit.checkpoints.read_pipeline import read_pipeline
from dit.components import component, composed
from dit.config_check import check_config
from dit.devices import device_of
from dit.diffusion.denoiser import Watch
from dit.files import CONF
from dit.layers.embeddings import added_inputs
from dit.pipeline import Pipeline, Recipe
from dit.plain_values import plain
from dit.sample_grid import Samples
from dit.trust import give_consent
from dit.types import Autoencoder


@dataclass(frozen=True)
class Run:
    """A trained model: its pipeline, its config, the checkpoint file or folder, and the step of its weights.

    posthoc: how the weights were reconstructed from snapshots, or None if they are of the checkpoint. adapters: the
    low-rank adapters of the backbone, or None. The config of a model that was not trained with dit has only `recipe`.
    """

    pipeline: Pipeline
    config: DictConfig
    path: Path
    step: int
    posthoc: Reconstruction | None = None
    adapters: Adapters | None = None

    def scale_adapters(self, factor: float) -> None:
        """Multiplies the scales of the adapters by a factor; at 0 the model is its base, bit for bit. Raises ValueError
        if there are none and the factor is not 1."""
        if self.adapters is not None:
            self.adapters.scale(factor)
        elif factor != 1:
            raise ValueError(f"adapter_scale={factor}: {self.path} has no low-rank adapter; add one with adapters=PATH")

    def recipe(
        self,
        steps: int | None = None,
        sampler: str | Any = None,
        grid: str | Any = None,
        guidance: float | str | Any = None,
        negative: str | None = None,
    ) -> Recipe:
        """Returns the model's recipe, with the given arguments replaced. sampler, grid, guidance: an object or a name
        in conf/; a number is the scale of the model's guidance."""
        own = self.config.recipe
        if isinstance(sampler, str):
            sampler = component("sampler", sampler)
        if isinstance(guidance, int | float):
            guidance = instantiate(own.guidance, scale=float(guidance))
        return Recipe(
            sampler or next(iter(instantiate(own.sampler).values())),
            (component("grid", grid) if isinstance(grid, str) else grid) or instantiate(own.grid),
            own.steps if steps is None else steps,
            (component("guidance", guidance) if isinstance(guidance, str) else guidance) or instantiate(own.guidance),
            own.get("negative") if negative is None else negative,
        )

    def sample(
        self,
        prompts: str | Sequence[str],
        seeds: Sequence[int] | None = None,
        size: tuple[int, int] | None = None,
        batch_size: int = 64,
        watch: Watch | None = None,
        gradients: bool = False,
        **recipe: Any,
    ) -> Samples:
        """Samples an image for each prompt. seeds: one for each prompt, or None for 0, 1, 2, ...; size: (width, height)
        in pixels, or None for that of training; the other arguments are those of `Pipeline` and `recipe`."""
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        chosen, seeds = self.recipe(**recipe), range(len(texts)) if seeds is None else seeds
        shape = self.pipeline.shape_of(size)
        self.pipeline.check(chosen)
        return self.pipeline(texts, seeds, chosen, batch_size, shape=shape, watch=watch, gradients=gradients)


def load(
    where: str | Path,
    weights: str = "ema",
    device: str = "auto",
    dtype: str = "float32",
    trust: str | Sequence[str] | None = None,
    adapters: Entries = None,
) -> Run:
    """Loads a model to sample: a run directory, a .ckpt file, or a folder of a diffusers pipeline.

    weights, trust: of a run, see `load_run`. dtype: of a pipeline's text encoders and autoencoder. adapters: paths of
    low-rank adapters to add, or mappings with path, scale and weights. Raises ValueError if there is no such model or
    adapter.
    """
    folder = Path(where)
    if not (folder / INDEX).is_file():
        return load_run(where, weights, device, trust, adapters)
    parts, target = read_pipeline(folder, dtype), device_of(device)
    side = parts.sample_size * parts.autoencoder.factor
    shape = parts.autoencoder.latent_shape(side, side)
    pipeline = Pipeline(parts.backbone, parts.path, parts.prediction, parts.text_encoder, parts.autoencoder, shape)
    added = adapters_of(pipeline.backbone, given_adapters(adapters))
    pipeline.backbone.eval().requires_grad_(False).to(target)
    pipeline.text_encoder.to(target)
    sampler = OmegaConf.load(CONF / "sampler" / f"{parts.sampler}.yaml")
    recipe = {"sampler": sampler, "grid": parts.grid, "guidance": parts.guidance, "steps": parts.steps}
    return Run(pipeline, OmegaConf.create({"recipe": recipe}), folder, 0, adapters=added)


def from_config(*overrides: str, device: str = "auto") -> Run:
    """Builds the initial networks of `python train.py OVERRIDES`, without its data. With
    `init=FOLDER` they have published weights: `from_config("experiment=imagenet256_dit_xl2", "init=DiT-XL-2-256")`.

    Raises ValueError for an override that does not exist, weights of another model, and a text encoder whose words or
    classes are read from the training captions: give them, such as `text_encoder.names=[cat,dog]`.
    """
    cfg = composed("train", ["name=python", *overrides])
    check_config("train", plain(cfg), trusted=True)
    unread = [name for name in VOCABULARY if cfg.text_encoder.get(name, ()) is None]
    if unread:
        raise ValueError(
            f"text_encoder.{unread[0]} is read from the training captions: give it, as text_encoder.{unread[0]}=[...]"
        )
    pipeline, target = build_pipeline(cfg, device="meta" if is_foreign(cfg.init) else "cpu"), device_of(device)
    initial(pipeline, cfg)
    pipeline.backbone.to(target)
    pipeline.text_encoder.to(target)
    return Run(pipeline, cfg, Path(cfg.init or "."), 0)


def load_run(
    where: str | Path,
    weights: str = "ema",
    device: str = "auto",
    trust: str | Sequence[str] | None = None,
    adapters: Entries = None,
) -> Run:
    """Returns the run of a run directory or .ckpt file, its networks frozen and on `device`.

    weights: ema, raw, the average of one decay, such as ema_0.999, or one reconstructed from the snapshots of the run
    directory, such as posthoc_0.1 or posthoc_0.1@STEP (`dit.checkpoints.posthoc`). The backbone is built on the
    meta device and takes memory only after the checkpoint is known to have all weights. trust: packages from outside
    dit whose code the checkpoint may name; consent holds for the process. Raises ValueError if there is no readable
    checkpoint, if it is not of a diffusion model, or if it names code of other packages.
    """
    give_consent(trust)
    return load_found(*find_checkpoint(where), weights, device, adapters)


def load_found(
    path: Path, checkpoint: dict[str, Any], weights: str = "ema", device: str = "auto", adapters: Entries = None
) -> Run:
    """Returns the run of a checkpoint that has been read, like `load_run`."""
    target = device_of(device)
    cfg = config_of(path, checkpoint)
    pipeline = build_pipeline(cfg, own_autoencoder(cfg, path), device="meta")
    if checkpoint.get(BASE) is not None:
        load_base(pipeline.backbone, cfg, path, checkpoint[BASE])
    adapt(pipeline, cfg, checkpoint.get(BASE))
    step, posthoc = int(checkpoint["global_step"]), None
    if is_posthoc(weights):
        posthoc, averages = reconstruct(path.absolute().parent.parent, weights, step)
        load_backbone(pipeline.backbone, checkpoint, averages)
    else:
        load_backbone(pipeline.backbone, checkpoint, weights)
    added = adapters_of(pipeline.backbone, given_adapters(adapters))
    pipeline.backbone.eval().requires_grad_(False).to(target)
    pipeline.text_encoder.to(target)
    return Run(pipeline, cfg, path, step if posthoc is None else posthoc.step, posthoc, added)


def merged_backbone(run: Run, own_names: bool = False) -> nn.Module:
    """Returns the trained backbone in its original architecture, with its adapters at their scales in the weights.

    own_names: keep the embeddings of further inputs, which no other library has. Raises ValueError if its adapter
    cannot be merged, or if it has a learned token, whose vector belongs to the text encoder."""
    refuse_learned_token(run.config, run.path)
    backbone, adapter = merge(run.pipeline.backbone), run.config.get("adapter")
    return (
        backbone if adapter is None or (own_names and added_inputs(backbone)) else instantiate(adapter).merge(backbone)
    )


def own_autoencoder(cfg: DictConfig, checkpoint: Path) -> Autoencoder | None:
    """Returns the autoencoder that was fitted for a run, from the copy in its directory; None if none was fitted.
    Raises ValueError if the copy is missing."""
    if cfg.get("fit_autoencoder") is None:
        return None
    folder = checkpoint.absolute().parents[1] / "autoencoder"
    if not folder.is_dir():
        raise ValueError(f"{checkpoint}: {folder}, the autoencoder of this run, is missing; copy its directory whole")
    return instantiate(cfg.autoencoder, path=str(folder))


def network_of(ckpt: str, weights: str = "ema") -> nn.Module:
    """Returns the trained backbone of a run, as the second network of autoguidance."""
    return second_run(ckpt, weights).pipeline.backbone


def second_run(ckpt: str, weights: str = "ema") -> Run:
    """Returns the run that guides another, on the CPU. It is cached, and read again if its checkpoints change."""
    files = [file for file in [Path(ckpt), *checkpoints_of(Path(ckpt))] if file.is_file()]
    return _second_run(ckpt, weights, tuple((str(file), file.stat().st_mtime_ns) for file in files))


@cache
def _second_run(ckpt: str, weights: str, files: object) -> Run:
    return load_run(ckpt, weights, "cpu")


def check_second_network(guidance: DictConfig, run: DictConfig) -> None:
    """Raises ValueError if the second network of a guidance was trained for other latents, texts or noise."""
    if "network" not in guidance:
        return
    other = second_run(guidance.network.ckpt, guidance.network.get("weights", "ema")).config
    differing = [name for name in ("path", "prediction", "autoencoder", "text_encoder") if other[name] != run[name]]
    if differing:
        raise ValueError(
            f"guidance.network.ckpt={guidance.network.ckpt} differs from ckpt in its {' and '.join(differing)}: only a "
            f"run on the same latents, texts and noise can guide"
        )
