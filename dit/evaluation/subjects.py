"""The subjects that evaluate.py scores: runs of dit, pipelines of diffusers, and existing pictures."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from dit.checkpoints.native import checkpoints_of, find_checkpoint
from dit.code_digest import foreign_code
from dit.devices import device_of
from dit.errors import nearest
from dit.evaluation import taught
from dit.evaluation.base_model import BASE, base_model
from dit.evaluation.diffusers_model import DiffusersModel
from dit.evaluation.sources import given_pictures, pictures_at, squared
from dit.evaluation.sweep import Cell, Pictures, digest_of
from dit.files import CONF
from dit.picture_files import size_text
from dit.pipeline import Pipeline, Recipe
from dit.plain_values import listed, numbers, plain, sizes, targets_in
from dit.runs import Run, check_second_network, load_found, second_run, trained_with_null
from dit.scoring.prompts import EncodedPrompts
from dit.scoring.references import CHOSEN, rules_of, rules_of_training, size_of
from dit.scoring.samples import Done, SampleBatch, sample_prompts
from dit.tensors import dtype_of, fingerprint
from dit.types import CaptionedImages

SECOND = "dit.runs.network_of"
FIRST = "step_0000001"
CALLED = ("checkpoint", "step", "weights", "sampler", "grid")  # names; other fields of a cell have the content


class Subject(ABC):
    """The subject of an evaluation. title: its name in the report; sizes: (width, height) of its pictures, several of a
    sweep; home: the default folder of its results; metric: its default metrics."""

    title: str
    sizes: Sequence[tuple[int, int]]
    home = Path("evaluations")
    metric = DictConfig({})

    @abstractmethod
    def cells(self, prompts: Sequence[str]) -> list[Cell]:
        """Returns each setting that samples a picture for every prompt, without duplicates.

        Raises ValueError if one cannot be sampled.
        """

    def real(self, split: str) -> CaptionedImages | None:
        """Returns the real pictures of its data, "val", "train" or "subject" (what a model was fine-tuned on), or None
        if the data are unknown."""
        return None

    def captions(self) -> Sequence[str] | None:
        """Returns the captions of existing pictures, or None for a model."""
        return None

    def prompts(self) -> Sequence[str] | None:
        """Returns prompts of the subject that a model was fine-tuned on; None if it was not, or if it is not known."""
        return None

    def class_prompts(self) -> Sequence[str]:
        """Returns prompts of what the model could draw before fine-tuning, if they are known."""
        return ()

    def compare_with_base(self) -> None:
        """Adds the model before fine-tuning as the first one. Raises ValueError if there is none."""
        raise ValueError("prior drift is measured on runs of dit: give ckpt=RUN, or leave the metric out")

    def models(self) -> Iterator[tuple[str, Pipeline, dict[str, Any]]]:
        """Yields its models of dit: a name, the pipeline, and its description for a card. The floors use the first
        autoencoder."""
        return iter(())

    @property
    def notes(self) -> list[str]:
        """What a reader of the scores should know about its models, one sentence each."""
        return []


def grids_of(cfg: DictConfig, run: DictConfig) -> dict[str, DictConfig]:
    """Returns the grids by name: those of the list `grids`, or else the chosen one, or else the run's."""
    known = {file.stem: OmegaConf.load(file) for file in sorted((CONF / "grid").glob("*.yaml"))}
    if not cfg.grids:
        node = cfg.grid or run.grid
        same = (name for name, other in known.items() if other == node)  # its name in conf/, if it has one
        return {next(same, str(node._target_).rpartition(".")[2]): node}
    found = {}
    for name in listed(cfg.grids, "grids"):
        if name not in known:
            raise ValueError(f"grids={name}: there is no such grid.{nearest(name, known)}")
        node = known[name] or run.grid
        assert isinstance(node, DictConfig)
        found[name] = node
    return found


class Runs(Subject):
    """Checkpoints of dit: each of `ckpt` with each of `weights`, sampled with all settings of the config. One at a time
    is in memory."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        pairs = product(self.wheres(), listed(cfg.weights, "weights"))
        self.pairs = list(dict.fromkeys((str(where), str(weights)) for where, weights in pairs))
        self._held: tuple[tuple[str, str], Run] | None = None
        self._texts: dict[str, EncodedPrompts] = {}
        self._notes: dict[tuple[str, str], str] = {}
        # each path is resolved once, because a running training may write newer files; tensors stay on disk until used
        self._found = {where: find_checkpoint(where) for where in dict.fromkeys(where for where, _ in self.pairs)}
        first = self.open(*self.pairs[0])
        self.config, self.path = first.config, first.path
        self.metric = self.config.metric
        self.title = ", ".join(dict.fromkeys(self.name(path) for path, _ in self._found.values()))
        self.sizes = sizes(self.config.data.size if cfg.size is None else cfg.size, "size")
        self.home = first.path.parents[1] / "evaluations"

    def wheres(self) -> list[str]:
        """Returns the runs and checkpoints to score; with checkpoints=all every one of each run, the oldest first, but
        for that of the first step, which tests the disk."""
        given = listed(self.cfg.ckpt, "ckpt")
        if self.cfg.checkpoints == "newest":
            return given
        every = [list(reversed(checkpoints_of(Path(where)))) or [Path(where)] for where in given]
        return [str(path) for paths in every for path in paths if path.stem != FIRST or len(paths) == 1]

    @staticmethod
    def name(path: Path) -> str:
        return f"{path.parents[1].name}/{path.name}"

    def label(self, where: str, run: Run) -> str:
        return f"{run.path.parents[1].name}/{BASE}" if where == BASE else self.name(run.path)

    def open(self, where: str, weights: str) -> Run:
        """Returns the run of a checkpoint, ready for sampling."""
        if self._held is None or self._held[0] != (where, weights):
            self._held = None  # before the next takes memory
            self._held = (where, weights), self._loaded(where, weights)
            self._held[1].pipeline.sample_in(self.cfg.precision, self.cfg.compile)
            if (made := self._held[1].posthoc) is not None:
                self._notes[where, weights] = f"{self.name(self._held[1].path)}, {weights}: {made}"
        return self._held[1]

    def _loaded(self, where: str, weights: str) -> Run:
        if where == BASE:
            return base_model(self.config, self.path, self.cfg.base, self.cfg.device)
        return load_found(*self._found[where], weights, self.cfg.device, plain(self.cfg)["adapters"])

    def adapter_scales(self, run: Run) -> list[float]:
        """Returns the scales of its adapters to evaluate; only 1 if it has none."""
        scales = numbers(self.cfg.adapter_scale, "adapter_scale", float)
        return [1.0] if run.adapters is None else [float(scale) for scale in scales]

    def compare_with_base(self) -> None:
        self.pairs.insert(0, (BASE, self.pairs[0][1]))

    def real(self, split: str) -> CaptionedImages | None:
        if split == "subject":
            return taught.subject_pictures(self.config)
        return instantiate(self.config.data.module[split])

    def prompts(self) -> Sequence[str] | None:
        return taught.subject_prompts(self.config)

    def class_prompts(self) -> Sequence[str]:
        return taught.class_prompts(self.config, self.cfg.base)

    def cells(self, prompts: Sequence[str]) -> list[Cell]:
        found = [cell for where, weights in self.pairs for cell in self._cells_of(where, weights, prompts)]
        if self.cfg.adapter_scale != 1 and not any("adapter_scale" in cell.subject for cell in found):
            raise ValueError(
                f"adapter_scale={self.cfg.adapter_scale}: {self.title} has no low-rank adapter; add one with "
                f"adapters=PATH"
            )
        distinct: dict[str, Cell] = {}
        for cell in found:  # cells that sample the same pictures get the name of the first
            distinct.setdefault(digest_of({k: v for k, v in cell.subject.items() if k not in CALLED}), cell)
        names = {cell.key for cell in found}
        if more := len(names) - len(distinct):
            print(f"warning: {more} of {len(names)} cells equal others with another name: left out", file=sys.stderr)
        return list(distinct.values())

    def _cells_of(self, where: str, weights: str, prompts: Sequence[str]) -> Iterator[Cell]:
        opened = self.open(where, weights)
        pipeline, run = opened.pipeline, opened.config
        if self.cfg.size is None and run.data.size != self.config.data.size:
            raise ValueError(
                f"{self.title}: trained at {self.config.data.size} and at {run.data.size} pixels, and scores of "
                f"different sizes are not compared; give size=[WIDTH,HEIGHT], or evaluate one at a time"
            )
        check_second_network(self.cfg.guidance, run)
        self._texts_of(pipeline, prompts)  # raises now for prompts that it cannot encode
        subject = {
            "checkpoint": self.label(where, opened),
            "step": opened.step,
            "weights": weights,
            **model_of(opened),
        }
        if where != BASE:  # the config is that of the fine-tuning
            subject["training_data"] = rules_of_training(plain(run)["data"])
        calls = {"precision": pipeline.precision, "compile": self.cfg.compile}
        for scale, (kind, recipe) in product(self.adapter_scales(opened), recipes_of(self.cfg, run)):
            pipeline.check(recipe)
            kind["recipe"] |= calls
            kind |= {} if opened.adapters is None else {"adapter_scale": scale}
            for size in self.sizes:
                maker = self._maker((where, weights, scale), recipe, prompts, pipeline.shape_of(size))
                yield Cell(subject | kind | {"size": size_text(size)}, maker)

    def _maker(
        self, model: tuple[str, str, float], recipe: Recipe, prompts: Sequence[str], shape: Sequence[int]
    ) -> Pictures:
        """model: the checkpoint, its weights, and the scale of its adapters."""

        def pictures(seed: int, done: Done) -> Iterator[SampleBatch]:
            run = self.open(*model[:2])
            run.scale_adapters(model[2])
            pipeline = run.pipeline
            texts = self._texts_of(pipeline, prompts)
            return sample_prompts(pipeline, prompts, texts, seed, recipe, self.cfg.batch_size, done, shape)

        return pictures

    def _texts_of(self, pipeline: Pipeline, prompts: Sequence[str]) -> EncodedPrompts:
        """Returns the encoded prompts, which are encoded once for all models with the same encoder."""
        key = pipeline.text_encoder.fingerprint
        if key not in self._texts:
            self._texts[key] = EncodedPrompts(pipeline, prompts)
        return self._texts[key]

    def models(self) -> Iterator[tuple[str, Pipeline, dict[str, Any]]]:
        for where, weights in self.pairs:
            run = self.open(where, weights)
            for scale in self.adapter_scales(run):
                run.scale_adapters(scale)
                named, content = f"{self.label(where, run)}, {weights}", model_of(run)
                if run.adapters is not None:
                    named, content = f"{named}, adapter scale {scale:g}", content | {"adapter_scale": scale}
                yield named, run.pipeline, content

    @property
    def notes(self) -> list[str]:
        """How each model that was opened was reconstructed from snapshots, with its error."""
        return list(self._notes.values())


def scales_of(guidance: DictConfig, run: DictConfig) -> list[float]:
    """Returns the guidance scales. Of several, those that the run supports: only 1 if it was never trained with the
    null condition or has no captions. Reports the scales that are left out."""
    scales = numbers(guidance.scale, "guidance.scale", float)
    has_null = "network" in guidance or trained_with_null(run)
    left_out = [] if has_null else [s for s in scales if s != 1 and instantiate(guidance, scale=float(s)).uses_null]
    if not left_out or len(left_out) == len(scales):
        return scales
    print(
        f"warning: guidance.scale={','.join(map(str, left_out))} left out: {run.name} was trained on pictures without "
        f"captions or with caption_dropout=0, so that guidance has no null condition",
        file=sys.stderr,
    )
    return [1]


def recipes_of(cfg: DictConfig, run: DictConfig) -> Iterator[tuple[dict[str, Any], Recipe]]:
    """Yields grids x samplers x guidance scales x steps: the description for a card, and the recipe."""
    samplers = instantiate(cfg.sampler)
    guidance = {k: v for k, v in with_content(plain(cfg.guidance)).items() if k != "scale"}
    scales = scales_of(cfg.guidance, run)
    for grid_name, node in grids_of(cfg, run).items():
        grid = instantiate(node)
        for name, sampler in samplers.items():
            for scale in scales:
                for steps in numbers(cfg.steps, "steps"):
                    detail = {"sampler": plain(cfg.sampler[name]), "grid": plain(node), "guidance": guidance}
                    detail |= {"code": code} if (code := code_outside(detail)) else {}
                    kind = {"sampler": name, "grid": grid_name, "steps": steps, "guidance": float(scale)}
                    recipe = Recipe(sampler, grid, steps, instantiate(cfg.guidance, scale=float(scale)))
                    yield kind | {"recipe": detail}, recipe


def with_content(node: Any) -> Any:
    """Returns a plain config in which each second network (`dit.runs.network_of`) is described by its content, not
    its path."""
    if isinstance(node, dict) and node.get("_target_") == SECOND:
        run = second_run(node["ckpt"], node.get("weights", "ema"))
        return {"step": run.step} | model_of(run)
    return {key: with_content(value) for key, value in node.items()} if isinstance(node, dict) else node


def code_outside(node: Any) -> dict[str, str]:
    """Returns hashes of the code from outside dit that a plain config builds."""
    return foreign_code(*(get_object(target) for target in targets_in(node)))


def model_of(run: Run) -> dict[str, Any]:
    """Returns the description of a model for a card: the hash of its weights, how they were reconstructed from
    snapshots if they were, its settings, and the fingerprints of its frozen encoders."""
    pipeline, config = run.pipeline, run.config
    coder, text = pipeline.autoencoder, pipeline.text_encoder
    scaling = {name: getattr(coder, name).flatten().tolist() for name in ("shift", "scale")}
    settings = {name: plain(config[name]) for name in ("backbone", "adapter", "path", "prediction") if config.get(name)}
    networks: dict[str, Any] = {
        **settings,
        "latents": list(pipeline.latent_shape),
        "autoencoder": {"kind": type(coder).__name__, "content": coder.fingerprint, **scaling},
        "text_encoder": {"kind": type(text).__name__, "content": text.fingerprint},
    }
    networks |= {"code": code} if (code := code_outside(settings) | foreign_code(coder, text)) else {}
    made = {} if run.posthoc is None else {"posthoc": run.posthoc.description}
    added = run.adapters.description if run.adapters is not None else []
    networks |= {"adapters": added} if added else {}
    return {"weights_sha256": fingerprint(pipeline.backbone), **made, "networks": networks}


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


def subject_of(cfg: DictConfig) -> Subject:
    """Returns the subject that the config names. Raises ValueError if it names none or several."""
    kinds: dict[str, Callable[[DictConfig], Subject]] = {"ckpt": Runs, "model": DiffusersPipeline, "images": Given}
    named = [name for name in kinds if cfg[name] is not None]
    if cfg.lora is not None and named != ["model"]:
        raise ValueError(f"lora={cfg.lora} is for a pipeline of diffusers: give it together with model=FOLDER")
    if len(named) != 1:
        given = " and ".join(f"{name}={cfg[name]}" for name in named) or "nothing"
        raise ValueError(
            f"{given} is given to be scored: use one of ckpt=RUN, model=FOLDER of a diffusers pipeline, or "
            f"images=FOLDER or .npz"
        )
    if cfg.adapters is not None and named != ["ckpt"]:
        raise ValueError(f"adapters={cfg.adapters} are added to runs of dit: give ckpt=RUN, or leave adapters out")
    return kinds[named[0]](cfg)
