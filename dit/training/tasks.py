"""Builds the LightningModule and the data of a run from its config, for each task."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig

from dit.build import build_pipeline
from dit.checkpoints.initial import initial, is_foreign
from dit.data.captions import all_captions
from dit.data.module import LatentData, PictureData
from dit.data.shards import Augmentation
from dit.diffusion.distribution_matching import DistributionMatching
from dit.diffusion.flow_map import FlowMap
from dit.diffusion.objective import TrainingObjective
from dit.encoders.learned_token import LearnedToken
from dit.layers.embeddings import extra_inputs
from dit.pipeline import Pipeline
from dit.runs import Run, second_run
from dit.training.autoencoder import AutoencoderModule
from dit.training.clip import ClipModule
from dit.training.diffusion import DiffusionModule
from dit.training.distribution_matching import DistributionMatchingModule
from dit.training.learned_captions import LearnedCaptions
from dit.training.rare_token import check_token
from dit.training.vocabulary import close_vocabulary, is_open, trained_entries
from dit.types import Condition


def optimization(cfg: DictConfig) -> dict[str, Any]:
    """Returns the arguments that every LightningModule of dit takes: optimizer, schedule and seed."""
    return {"optimizer": instantiate(cfg.optimizer), "schedule": instantiate(cfg.lr_schedule), "seed": cfg.seed}


def diffusion(cfg: DictConfig, folder: Path | None = None) -> tuple[L.LightningModule, PictureData]:
    """Returns a diffusion backbone on latents and text, and its data. A vocabulary that is null is read from the
    captions and written into the config.

    folder: the run's directory, whose checkpoint is resumed if the config says so."""
    autoencoder = instantiate(cfg.autoencoder)  # before the data is read: missing weights raise at once
    text_encoder = None if is_open(cfg.text_encoder) else instantiate(cfg.text_encoder)
    data = instantiate(cfg.data.module)
    if text_encoder is None:
        close_vocabulary(cfg, [*all_captions(data.train), *all_captions(data.val)], folder)
    if cfg.data.get("token") is not None and cfg.resume is None:
        words = None if is_foreign(cfg.init) else trained_entries(cfg, None, "words")
        check_token(cfg.data.token, text_encoder or instantiate(cfg.text_encoder), words or [])
    pipeline = build_pipeline(cfg, autoencoder, text_encoder, device="meta" if is_foreign(cfg.init) else "cpu")
    base = initial(pipeline, cfg)
    if pipeline.largest_scale is not None and not pipeline.trained_with_null:
        raise ValueError(
            f"objective.largest_scale={pipeline.largest_scale:g} needs the null condition, and there is none: train "
            f"with captions and caption_dropout above 0, or set objective.largest_scale=null"
        )
    teacher = None if cfg.get("distill") is None else second_run(cfg.distill)
    objective = objective_of(cfg, pipeline, teacher)
    kind: Callable[..., DiffusionModule] = DiffusionModule
    if isinstance(objective, DistributionMatching):
        fake = copy.deepcopy(pipeline.backbone)
        kind = partial(DistributionMatchingModule, fake, cfg.trainer.gradient_clip_val)
    pipeline.sample_in(cfg.sampling.precision, cfg.sampling.compile)
    pipeline.check(instantiate(cfg.recipe))  # raise before training if previews could not be sampled
    assert isinstance(data, LatentData)
    data.encode_with(pipeline.autoencoder, pipeline.text_encoder, cfg.cache_dir, augmentation_of(cfg))
    module = kind(
        pipeline,
        objective,
        caption_dropout=cfg.caption_dropout,
        compile=cfg.compile,
        activation_checkpointing=cfg.activation_checkpointing,
        base=base,
        teacher=None if teacher is None else teacher.pipeline.backbone,
        **optimization(cfg),
    )
    if not cfg.compile and not getattr(pipeline.backbone, "reads_padding", True):
        data.pad_text = False
        module.draws = replace(module.draws, null=module.draws.null.trim())
    data.draws = module.draws
    if cfg.data.get("learn_token"):
        if not isinstance(cfg.trainer.strategy, str):
            raise ValueError("data.learn_token=true needs whole weights in each process: choose trainer=default or ddp")
        learned, change = module.backbone.learned_token, (lambda c: c) if data.pad_text else Condition.trim
        assert isinstance(learned, LearnedToken)
        module.learned_captions = LearnedCaptions(
            learned, cfg.data.token, data.train, cfg.seed, cfg.caption_dropout, change
        )
    return module, data


def objective_of(cfg: DictConfig, pipeline: Pipeline, teacher: Run | None) -> TrainingObjective:
    """Returns the objective. Raises ValueError if the teacher cannot teach the pipeline, or if the objective cannot
    train it."""
    taught: dict[str, Any] = {}
    if teacher is not None:
        check_teacher(cfg, teacher, pipeline)
        taught = {"teacher": teacher.pipeline.prediction}
    kind = get_object(cfg.objective._target_)
    if isinstance(kind, type) and issubclass(kind, DistributionMatching):
        check_student(cfg, pipeline)
    objective: TrainingObjective = instantiate(
        cfg.objective, path=pipeline.path, prediction=pipeline.prediction, **taught
    )
    if isinstance(objective, FlowMap) and objective.needs_jvp and not isinstance(cfg.trainer.strategy, str):
        raise ValueError(
            "objective.derivative=jvp: weights that are divided among processes have no forward derivatives; say "
            "objective.derivative=difference, or choose trainer=ddp or objective=semigroup"
        )
    return objective


def check_teacher(cfg: DictConfig, teacher: Run, student: Pipeline) -> None:
    """Raises ValueError if the teacher is of other latents, texts or noise than the student, or has no null condition
    for the guidance that the student learns."""
    own, given = student, teacher.pipeline
    differing = [
        name
        for name, differs in {
            "autoencoder": own.autoencoder.fingerprint != given.autoencoder.fingerprint,
            "text_encoder": own.text_encoder.fingerprint != given.text_encoder.fingerprint,
            "path": cfg.path != teacher.config.path,
        }.items()
        if differs
    ]
    if differing:
        raise ValueError(
            f"distill={cfg.distill} differs from the student in its {' and '.join(differing)}: only a run on the same "
            f"latents, texts and noise can teach it"
        )
    if own.largest_scale is not None and not given.trained_with_null:
        raise ValueError(
            f"distill={cfg.distill} was trained without the null condition, which the student's guidance scales up to "
            f"{own.largest_scale:g} need: train it with captions and caption_dropout above 0"
        )


def check_student(cfg: DictConfig, student: Pipeline) -> None:
    """Raises ValueError if distribution matching cannot train this student: it needs a flow map, whole weights, and
    the whole batch of a step at once."""
    if "duration" not in extra_inputs(student.backbone):
        raise ValueError(
            f"init={cfg.init} is no flow map, and objective=distribution_matching trains only flow maps: make one with "
            f"experiment=distill first, and give it as init"
        )
    if not isinstance(cfg.trainer.strategy, str):
        raise ValueError(
            "objective=distribution_matching has a second network with whole weights in each process: choose "
            "trainer=default or ddp, not fsdp or hsdp"
        )
    if cfg.trainer.accumulate_grad_batches != 1 or cfg.trainer.precision == "16-mixed":
        raise ValueError(
            f"trainer.accumulate_grad_batches={cfg.trainer.accumulate_grad_batches} and trainer.precision="
            f"{cfg.trainer.precision}: objective=distribution_matching updates its fake network once per batch and "
            f"without loss scaling; say accumulate_grad_batches=1 and precision=32-true or bf16-mixed"
        )


def augmentation_of(cfg: DictConfig) -> Augmentation:
    """Returns the augmentation in the config of the data; the defaults if it gives none."""
    return Augmentation(**{name: cfg.data[name] for name in ("flip", "posterior") if name in cfg.data})


def pictures(cfg: DictConfig) -> PictureData:
    """Returns the data of a task that trains on pictures, not latents. Raises ValueError for an augmentation."""
    if (given := augmentation_of(cfg)) != Augmentation():
        raise ValueError(
            f"data.flip={given.flip} data.posterior={given.posterior}: task={cfg.task} trains on the pictures "
            f"themselves and has no cached latents; leave them at false and mode"
        )
    return instantiate(cfg.data.module)


def autoencoder(cfg: DictConfig, folder: Path | None = None) -> tuple[L.LightningModule, PictureData]:
    """Returns an AutoencoderKL to train on pictures, and its data."""
    options = instantiate(cfg.module, _convert_="all")
    return AutoencoderModule(**options, **optimization(cfg)), pictures(cfg)


def clip(cfg: DictConfig, folder: Path | None = None) -> tuple[L.LightningModule, PictureData]:
    """Returns a tiny open_clip model to train on captioned pictures, and its data."""
    data = pictures(cfg)
    options = instantiate(cfg.module, _convert_="all")
    return ClipModule(all_captions(data.train), **options, **optimization(cfg)), data


TASKS = {"diffusion": diffusion, "autoencoder": autoencoder, "clip": clip}
