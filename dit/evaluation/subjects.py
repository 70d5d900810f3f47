"""The subjects that evaluate.py scores: runs of dit, pipelines of diffusers, and existing pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path

from omegaconf import DictConfig

from dit.devices import device_of
from dit.evaluation.checkpoints import Runs
from dit.evaluation.diffusers_model import DiffusersModel
from dit.evaluation.run_settings import Setting
from dit.evaluation.sources import given_pictures, pictures_at, squared
from dit.evaluation.subject import Model, Subject
from dit.evaluation.sweep import Cell, Pictures
from dit.picture_files import size_text
from dit.plain_values import listed, numbers, plain, sizes
from dit.scoring.references import CHOSEN, rules_of, size_of
from dit.scoring.samples import Done, SampleBatch
from dit.tensors import dtype_of
from dit.types import CaptionedImages


class DiffusersPipeline(Subject):
    """A pipeline folder of diffusers, with every number of steps, guidance scale and weight of its LoRA files of the
    config."""

    def __init__(self, cfg: DictConfig) -> None:
        dtype = dtype_of("dtype", cfg.dtype, ("float32", "bfloat16", "float16"))
        lora = [] if cfg.lora is None else listed(cfg.lora, "lora")
        self.cfg = cfg
        self.model = DiffusersModel(cfg.model, device_of(cfg.device), dtype, plain(cfg.options), lora)
        self.title = f"{self.model.name} of {self.model.folder.absolute().name}"
        self.sizes = [self.model.size] if cfg.size is None else sizes(cfg.size, "size")

    def cells(self, prompts: Sequence[str]) -> list[Cell]:
        cells, model = [], {"model": self.model.folder.absolute().name, "pipeline": self.model.description}
        weights = [float(weight) for weight in numbers(self.cfg.lora_scale, "lora_scale", float)]
        for scale in numbers(self.cfg.guidance.scale, "guidance.scale", float):
            for steps, size, weight in product(numbers(self.cfg.steps, "steps"), self.sizes, weights):
                own = None if self.cfg.size is None else size
                make = self._maker(prompts, steps, float(scale), own, weight)
                make(0, lambda images: None)  # raises if it cannot be sampled
                subject = {"steps": steps, "guidance": float(scale), "size": size_text(size)}
                subject |= {"lora_scale": weight} if self.model.lora else {}
                cells.append(Cell(model | subject, make))
        return list({cell.key: cell for cell in cells}.values())

    def _maker(
        self, prompts: Sequence[str], steps: int, scale: float, size: tuple[int, int] | None, weight: float
    ) -> Pictures:
        def pictures(seed: int, done: Done) -> Iterator[SampleBatch]:
            self.model.scale_lora(weight)
            return self.model.sample(prompts, seed, steps, scale, self.cfg.batch_size, done, size)

        return pictures


class Given(Subject):
    """Pictures of a folder or an npz: one cell of all of them, or of a random subset if the config has a number."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        wanted = [None] if cfg.size is None else [squared(size) for size in sizes(cfg.size, "size")]
        self.sources = [pictures_at(cfg.images, size, cfg.cache_dir) for size in wanted]
        self.sizes = [size_of(source) for source in self.sources]
        self.title = Path(cfg.images).absolute().name

    def captions(self) -> Sequence[str] | None:
        return self.sources[0].captions

    def cells(self, prompts: Sequence[str]) -> list[Cell]:
        return [self._cell(source, size, prompts) for source, size in zip(self.sources, self.sizes, strict=True)]

    def _cell(self, source: CaptionedImages, size: tuple[int, int], prompts: Sequence[str]) -> Cell:
        given_pictures(source, prompts, self.cfg.batch_size)  # raises if there are too few
        chosen = CHOSEN if len(prompts) < len(source) else "all"
        pictures = {"content": source.fingerprint, "chosen": chosen, **rules_of(source)}
        subject = {"images": self.title, "size": size_text(size), "pictures": pictures}
        return Cell(subject, lambda seed, done: given_pictures(source, prompts, self.cfg.batch_size, done))


class RunsAndPipeline(Subject):
    """Checkpoints of dit and a pipeline of diffusers in one sweep. The data, metrics and prompts are those of the runs.
    Raises ValueError if their pictures have different sizes."""

    def __init__(self, cfg: DictConfig) -> None:
        self.runs, self.pipeline = Runs(cfg), DiffusersPipeline(cfg)
        if list(self.runs.sizes) != list(self.pipeline.sizes):
            ours, theirs = (", ".join(map(size_text, part.sizes)) for part in (self.runs, self.pipeline))
            raise ValueError(
                f"ckpt={cfg.ckpt} makes pictures of {ours} pixels and model={cfg.model} of {theirs}, and scores of "
                f"different sizes are not compared; give size=[WIDTH,HEIGHT], or evaluate one at a time"
            )
        self.title, self.sizes = f"{self.runs.title}, {self.pipeline.title}", self.runs.sizes
        self.home, self.metric = self.runs.home, self.runs.metric

    def cells(self, prompts: Sequence[str]) -> list[Cell]:
        return [*self.runs.cells(prompts), *self.pipeline.cells(prompts)]

    def real(self, split: str) -> CaptionedImages | None:
        return self.runs.real(split)

    def prompts(self) -> Sequence[str] | None:
        return self.runs.prompts()

    def models(self) -> Iterator[Model]:
        return self.runs.models()

    def settings(self, cells: Sequence[Cell]) -> list[Setting | None]:
        return self.runs.settings(cells)

    @property
    def notes(self) -> list[str]:
        return self.runs.notes


def subject_of(cfg: DictConfig) -> Subject:
    """Returns the subject that the config names. Raises ValueError if it names none, or several but for a run and a
    pipeline."""
    kinds: dict[str, Callable[[DictConfig], Subject]] = {"ckpt": Runs, "model": DiffusersPipeline, "images": Given}
    named = [name for name in kinds if cfg[name] is not None]
    if cfg.lora is not None and "model" not in named:
        raise ValueError(f"lora={cfg.lora} is for a pipeline of diffusers: give it together with model=FOLDER")
    if cfg.adapters is not None and "ckpt" not in named:
        raise ValueError(f"adapters={cfg.adapters} are added to runs of dit: give ckpt=RUN, or leave adapters out")
    if cfg.cache is not None and "ckpt" not in named:
        raise ValueError("cache is a step cache for runs of dit: give ckpt=RUN, or leave cache out")
    if named == ["ckpt", "model"]:
        return RunsAndPipeline(cfg)
    if len(named) != 1:
        given = " and ".join(f"{name}={cfg[name]}" for name in named) or "nothing"
        raise ValueError(
            f"{given} is given to be scored: use one of ckpt=RUN, model=FOLDER of a diffusers pipeline, or "
            f"images=FOLDER or .npz; or a run and a pipeline"
        )
    return kinds[named[0]](cfg)
