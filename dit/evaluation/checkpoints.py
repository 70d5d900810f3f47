"""Checkpoints of dit as the subject of an evaluation."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import product
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from dit.checkpoints.native import CONFIG, checkpoints_of, find_checkpoint
from dit.evaluation import taught
from dit.evaluation.base_model import BASE, base_model
from dit.evaluation.model_description import model_of
from dit.evaluation.recipes import recipes_of
from dit.evaluation.results import checkpoint_names
from dit.evaluation.run_settings import Setting, settings_of_runs
from dit.evaluation.subject import Model, Subject
from dit.evaluation.sweep import Cell, Pictures, digest_of
from dit.picture_files import size_text
from dit.pipeline import Pipeline, Recipe
from dit.plain_values import listed, numbers, plain, sizes
from dit.runs import Run, check_second_network, load_found
from dit.scoring.prompts import EncodedPrompts
from dit.scoring.references import rules_of_training
from dit.scoring.samples import Done, SampleBatch, sample_prompts
from dit.types import CaptionedImages

FIRST = "step_0000001"
CALLED = ("checkpoint", "step", "weights", "sampler", "grid")  # names; other fields of a cell have the content


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
        self._runs: dict[str, Path] = {}  # of each cell, by its key
        self.title = self.title_of([path for path, _ in self._found.values()])
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

    def title_of(self, paths: Sequence[Path]) -> str:
        """Returns the names of the checkpoints; of more than two their number and the names of their runs."""
        names = list(dict.fromkeys(map(self.name, paths)))
        if len(names) < 3:
            return ", ".join(names)
        runs = list(dict.fromkeys(path.parents[1] for path in paths))
        if len(runs) == 1:
            return f"{runs[0].name}: {len(names)} checkpoints"
        kinds = ", ".join(dict.fromkeys(str(checkpoint[CONFIG]["name"]) for _, checkpoint in self._found.values()))
        return f"{kinds}: {len(runs)} runs" + f", {len(names)} checkpoints" * (len(names) > len(runs))

    @cached_property
    def run_settings(self) -> dict[Path, Setting]:
        """The settings of each run, by its directory; empty for a single run."""
        configs = {path.absolute().parents[1]: checkpoint[CONFIG] for path, checkpoint in self._found.values()}
        return settings_of_runs(configs) if len(configs) > 1 else {}

    def settings(self, cells: Sequence[Cell]) -> list[Setting | None]:
        """Returns the setting of the run of each cell, if there are several runs."""
        found = self.run_settings
        return [found.get(self._runs.get(cell.key, Path())) for cell in cells] if found else []

    @cached_property
    def model_settings(self) -> dict[str, Setting]:
        """The settings of the run of each checkpoint, if there are several runs."""
        found = self.run_settings
        return {where: found[path.absolute().parents[1]] for where, (path, _) in self._found.items()} if found else {}

    def names_by_path(self, settings: Mapping[str, Setting]) -> dict[str, str]:
        """Returns a name for each checkpoint: its path, or the settings of its run if there are several."""
        paths = {where: path for where, (path, _) in self._found.items()}
        if not settings:
            return {where: self.name(path) for where, path in paths.items()}
        names = checkpoint_names([str(path) for path in paths.values()], [settings[where] for where in paths])
        return dict(zip(paths, names, strict=True))

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
            opened.scale_adapters(scale)
            pipeline.check(recipe)
            kind["recipe"] |= calls
            kind |= {} if opened.adapters is None else {"adapter_scale": scale}
            for size in self.sizes:
                maker = self._maker((where, weights, scale), recipe, prompts, pipeline.shape_of(size))
                cell = Cell(subject | kind | {"size": size_text(size)}, maker)
                if where != BASE:
                    self._runs[cell.key] = opened.path.absolute().parents[1]
                yield cell

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

    def models(self) -> Iterator[Model]:
        settings = self.model_settings
        folded = {where: replace(setting, seed=0) for where, setting in settings.items()}
        names, groups = self.names_by_path(settings), self.names_by_path(folded)
        for where, weights in self.pairs:
            run = self.open(where, weights)
            label = self.label(where, run)
            for scale in self.adapter_scales(run):
                run.scale_adapters(scale)
                description, ways = model_of(run), [weights]
                if run.adapters is not None:
                    description["adapter_scale"] = scale
                    ways.append(f"adapter scale {scale:g}")
                name = ", ".join([names.get(where, label), *ways])
                group = ", ".join(filter(None, [groups.get(where, label), *ways]))
                yield Model(name, group, run.pipeline, description, settings.get(where))

    @property
    def notes(self) -> list[str]:
        """How each model that was opened was reconstructed from snapshots, with its error."""
        return list(self._notes.values())
