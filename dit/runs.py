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

from dit.adapters.extra import ExtraConditions
from dit.adapters.lora import LoRA
from dit.adapters.low_rank import merge
from dit.build import VOCABULARY, build_pipeline
from dit.checkpoints.adapters import Adapters, Entries, adapters_of, given_adapters
from dit.checkpoints.foreign import initialize
from dit.checkpoints.native import BASE, CONFIG, check_depth, checkpoints_of, find_checkpoint, is_run, load_backbone
from dit.checkpoints.pipeline_folder import INDEX
from dit.checkpoints.posthoc import Reconstruction, is_posthoc, reconstruct
from dit.checkpoints.read_pipeline import read_pipeline
from dit.components import component, composed
from dit.config_check import check_config
from dit.devices import device_of
from dit.diffusion.denoiser import Watch
from dit.diffusion.prediction import Prediction
from dit.encoders.learned_token import LearnedToken
from dit.files import CONF
from dit.layers.embeddings import added_inputs
from dit.pipeline import Pipeline, Recipe
from dit.plain_values import changed, described, plain
from dit.sample_grid import Samples
from dit.tensors import fingerprint
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


def config_of(path: Path, checkpoint: dict[str, Any]) -> DictConfig:
    """Returns the config of a diffusion run. The checkpoint may name only parts of dit in their places and of packages
    that the user has consented to, so that building them runs no other code. Raises ValueError otherwise."""
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


def initial(pipeline: Pipeline, cfg: DictConfig) -> dict[str, str] | None:
    """Gives a pipeline the weights of `init`, if there are any, and the config's adapter, as training begins. Returns
    what `adapt` returns. Raises ValueError for weights of another model, and for an adapter with further inputs whose
    network was trained for another prediction or time."""
    check_clock(cfg, pipeline)
    if cfg.init is None:
        return adapt(pipeline, cfg)
    base = start_from(pipeline.backbone, cfg)
    check_prediction(cfg)
    return adapt(pipeline, cfg, base)


def check_clock(cfg: DictConfig, pipeline: Pipeline) -> None:
    """Raises ValueError if the clock of a network is to be changed, and its time is not 1000 t."""
    clock, prediction = OmegaConf.select(cfg, "adapter.clock"), pipeline.prediction
    if clock is None:
        return
    if not isinstance(prediction, Prediction) or abs(prediction.c_noise(pipeline.path.point(0.5)) - 500) > 1:
        raise ValueError(
            f"adapter.clock={clock:g} is for networks whose time is 1000 t, and the one of this prediction, "
            f"prediction._target_={cfg.prediction._target_}, is another: say adapter.clock=null"
        )


def check_prediction(cfg: DictConfig) -> None:
    """Raises ValueError if an adapter adds inputs to a run's network whose prediction, or time, is another one."""
    if is_foreign(cfg.init) or cfg.get("adapter") is None or not has_inputs(instantiate(cfg.adapter)):
        return
    held = find_checkpoint(cfg.init, whole=False)[1][CONFIG].get("prediction")
    if found := changed(held, OmegaConf.to_container(cfg.prediction, resolve=True), "prediction"):
        raise ValueError(
            f"init={cfg.init} has another prediction than the one that the adapter's inputs are added to: "
            f"{described(found)}; say inherit=[prediction] for that of the run"
        )


def adapt(pipeline: Pipeline, cfg: DictConfig, base: dict[str, str] | None = None) -> dict[str, str] | None:
    """Applies the config's adapter to the backbone: after its initial weights, before those of a checkpoint. Then adds
    the learned token, if there is one, to be trained and stored with the backbone.

    Returns the path and the fingerprint of the weights under the adapter if it leaves them as they are, else None:
    `base` if it is known, else those of `init`."""
    adapter = None if cfg.get("adapter") is None else instantiate(cfg.adapter)
    if base is None and cfg.init is not None and getattr(adapter, "separate", False):
        path = cfg.init if is_foreign(cfg.init) else find_checkpoint(cfg.init, whole=False)[0]
        base = {"path": str(path), "fingerprint": fingerprint(pipeline.backbone)}
    if adapter is not None:
        pipeline.backbone = adapter(pipeline.backbone)
    if cfg.data.get("learn_token"):
        learned = LearnedToken(pipeline.text_encoder, cfg.data.token, cfg.data.get("class_name", ""))
        pipeline.backbone.add_module("learned_token", learned)
    return base


def load_base(backbone: nn.Module, cfg: DictConfig, path: Path, base: dict[str, str]) -> None:
    """Loads the weights under the adapter of a checkpoint. Raises ValueError if they cannot be read or are others than
    those that the adapter was trained on."""
    held, expected = f"{path} holds only an adapter of {base['path']}", base["fingerprint"]
    based = cfg.copy()
    based.init = base["path"]
    try:
        start_from(backbone, based)
    except ValueError as error:
        raise ValueError(f"{held}, which cannot be loaded: {error}; put it back there") from None
    found = fingerprint(backbone)
    if found != expected:
        raise ValueError(f"{held}, whose weights are others now: {found}, not {expected}; put them back there")


def merged_backbone(run: Run, own_names: bool = False) -> nn.Module:
    """Returns the trained backbone in its original architecture, with its adapters at their scales in the weights.

    own_names: keep the embeddings of further inputs, which no other library has. Raises ValueError if its adapter
    cannot be merged, or if it has a learned token, whose vector belongs to the text encoder."""
    if OmegaConf.select(run.config, "data.learn_token"):
        raise ValueError(
            f"{run.path} has a learned token, which weights of the backbone alone do not hold; sample the run itself, "
            f"or train it without data.learn_token"
        )
    backbone, adapter = merge(run.pipeline.backbone), run.config.get("adapter")
    return (
        backbone if adapter is None or (own_names and added_inputs(backbone)) else instantiate(adapter).merge(backbone)
    )


def is_foreign(init: str | None) -> bool:
    """Returns True if `init` names weights of another library, False for those of a run or for None."""
    return init is not None and not is_run(init)


def start_from(backbone: nn.Module, cfg: DictConfig) -> dict[str, str] | None:
    """Loads the weights that `init` names: of a run, or of another library. The embeddings of further inputs come with
    them if the run has the same adapter; a low-rank adapter with such inputs then goes on, on the same base, whose path
    and fingerprint are returned, else None. Raises ValueError if the run has another backbone."""
    where = Path(cfg.init)
    if is_foreign(cfg.init):
        initialize(backbone, where)
        return None
    path, checkpoint = find_checkpoint(where)
    held = checkpoint[CONFIG].get("backbone")
    other, own = held if isinstance(held, dict) else {}, OmegaConf.to_container(cfg.backbone, resolve=True)
    assert isinstance(own, dict)
    differing = [str(key) for key in {*other, *own} if other.get(key) != own.get(key)]
    if differing:
        raise ValueError(f"init={where} has another backbone: it differs in {', '.join(sorted(differing))}")
    adapter, base = checkpoint[CONFIG].get("adapter"), checkpoint.get(BASE)
    given = None if cfg.get("adapter") is None else OmegaConf.to_container(cfg.adapter, resolve=True)
    changes = changed(adapter, given, "adapter")
    if adapter is None:
        load_backbone(backbone, checkpoint)
    elif not changes and has_inputs(added := instantiate(adapter)):
        if base is not None:
            load_base(backbone, cfg, path, base)
        else:
            backbone.to("meta")  # all weights are replaced
        load_backbone(added(backbone), checkpoint)
        return dict(base) if base is not None else None
    else:
        run = load_found(path, checkpoint, device="cpu")
        if inputs := added_inputs(run.pipeline.backbone):
            raise ValueError(
                f"init={where} was trained with the inputs {', '.join(inputs)} of an adapter, and is continued by the "
                f"same adapter alone: it has {described(changes)}; say these values"
            )
        merged = merged_backbone(run)
        backbone.load_state_dict(merged.state_dict(), assign=True)
    return None


def has_inputs(adapter: object) -> bool:
    """Returns whether an adapter adds further inputs to a network."""
    return isinstance(adapter, ExtraConditions) or (isinstance(adapter, LoRA) and adapter.conditions is not None)


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
