"""Scores a training run, at intervals and at its end."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from tqdm import tqdm

from dit.data.module import LatentData, PictureData
from dit.data.order import subset
from dit.distributed import raise_on_all_ranks
from dit.errors import first_line
from dit.files import parse_json, read_lines, write_atomic
from dit.metrics.base import FeatureMetric, ImageMetric
from dit.metrics.prompt_accuracy import PromptAccuracy
from dit.pipeline import Recipe
from dit.scoring.fitted_extractors import fit_extractors
from dit.scoring.prompts import EncodedPrompts, held_out_prompts
from dit.scoring.references import protocol_fields, reference_count, size_of, update_references
from dit.scoring.samples import Scores, sample_prompts, score_samples
from dit.training.diffusion import DiffusionModule
from dit.training.ema import weights_for_sampling
from dit.types import CaptionedImages


def score(
    module: DiffusionModule,
    metrics: Mapping[str, ImageMetric],
    prompts: Sequence[str],
    texts: EncodedPrompts,
    seed: int,
    recipe: Recipe,
    batch_size: int,
    label: str,
) -> Scores | None:
    """Samples a picture for every prompt, on all ranks, and returns the scores. Returns None with a warning if scoring
    fails with a ValueError; training continues."""
    trainer = module.trainer
    mine = len(range(trainer.global_rank, len(prompts), trainer.world_size))
    for metric in metrics.values():
        metric.to(module.device)  # needed to sum over ranks
    with tqdm(total=mine, desc=label, unit="image", leave=False, disable=trainer.global_rank > 0) as bar:
        try:
            return score_samples(
                metrics, sample_prompts(module.pipeline, prompts, texts, seed, recipe, batch_size, bar.update)
            )
        except ValueError as error:
            if trainer.is_global_zero:
                print(f"warning: no score at step {trainer.global_step}: {error}", file=sys.stderr)
            return None
        finally:
            for metric in metrics.values():
                metric.reset()


class PeriodicScore(L.Callback):
    """Scores the model every `every` steps, as evaluate.py would score a checkpoint of that step with the same recipe
    and counts. Logs score/COLUMN and appends a line with the scores and their protocol to RUN/scores.jsonl.

    The prompts are n held-out captions in random order (`held_out_prompts`); picture i is sampled with seed + i.
    Distances are measured to `references` held-out pictures, chosen at random (`dit.data.order.subset`; None: as
    `reference_count` says), or to `train_references` training pictures (None: all). The ranks divide the pictures.
    Does not use training's random numbers, so scores do not change the run. Raises ValueError for a count below 1.
    """

    def __init__(
        self,
        metrics: Mapping[str, Any],
        recipe: Recipe,
        every: int,
        n: int = 256,
        seed: int = 0,
        references: int | None = None,
        train_references: int | None = None,
        batch_size: int = 128,
    ) -> None:
        counts = {"every": every, "n": n, "references": references, "batch_size": batch_size}
        for name, value in {**counts, "train_references": train_references}.items():
            if value is not None and value < 1:
                raise ValueError(f"callbacks.scores.{name}={value} must be at least 1")
        self.metrics = {name: metric for name, metric in metrics.items() if isinstance(metric, ImageMetric)}
        if not self.metrics:
            raise ValueError("callbacks.scores.every: there is no metric of pictures; choose some, e.g. metric=shapes")
        self.recipe, self.every, self.n, self.seed, self.batch_size = recipe, every, n, seed, batch_size
        self.references = references
        self.counts = {"train": sys.maxsize if train_references is None else train_references}
        self.prompts: list[str] = []
        self.texts: EncodedPrompts | None = None
        self.protocol: dict[str, Any] = {}
        self.done = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Encodes the prompts and updates the metrics with the real pictures, once for all scores. Raises ValueError if
        there are fewer pictures than ranks."""
        assert isinstance(pl_module, DiffusionModule)
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, LatentData)
        if self.n < trainer.world_size:
            raise ValueError(f"callbacks.scores.n={self.n} is less than 1 for each of {trainer.world_size} processes")
        device = pl_module.device
        self.prompts = held_out_prompts(data.val.captions, self.n)
        pl_module.pipeline.text_encoder.to(device)
        self.texts = EncodedPrompts(pl_module.pipeline, self.prompts)
        pl_module.pipeline.text_encoder.to("cpu")  # as the data module left it: it may be large
        for metric in self.metrics.values():
            metric.to(device)
        real = {"val": data.val, "train": data.train}
        self.counts["val"] = reference_count(len(data.val), self.n, self.references)
        fit_extractors(self.metrics.values(), data.train, data.cache_dir)
        update_references(self.metrics.values(), real, self.counts, data.cache_dir, self.batch_size)
        splits = {metric.reference_split for metric in self.metrics.values()}
        references = {split: source for split, source in real.items() if split in splits}
        protocols = {name: m.extractor.protocol for name, m in self.metrics.items() if isinstance(m, FeatureMetric)}
        self.protocol = {
            **protocol_fields(self.prompts, self.seed, size_of(data.val), references, self.counts),
            "recipe": "of config.yaml",
            "precision": pl_module.pipeline.precision,
            "extractors": {name: dict(protocol) for name, protocol in protocols.items()},
            "uint8": "round",
        }

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drops the lines that an interrupted run wrote after the step from which it is resumed."""
        self.done = trainer.global_step
        if trainer.is_global_zero and self.file(trainer).is_file():
            write_atomic(self.file(trainer), "".join(self.lines(trainer)))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step % self.every or trainer.global_step == self.done:
            return
        assert isinstance(pl_module, DiffusionModule)
        assert self.texts is not None
        self.done = trainer.global_step
        with weights_for_sampling(trainer, pl_module) as weights:
            result = score(
                pl_module, self.metrics, self.prompts, self.texts, self.seed, self.recipe, self.batch_size, "scoring"
            )
        if result is not None and trainer.is_global_zero:
            self.write(trainer, weights, result)

    def write(self, trainer: L.Trainer, weights: str, result: Scores) -> None:
        """Writes the scores to the loggers, which count steps from 0, and to the file."""
        for logger in trainer.loggers:
            logger.log_metrics({f"score/{column}": v for column, v in result.scores.items()}, trainer.global_step - 1)
        line = {
            "step": trainer.global_step,
            "weights": weights,
            "protocol": self.protocol,
            "cost": {"nfe": result.nfe, "seconds": result.seconds},
            "scores": result.scores,
        }
        write_atomic(self.file(trainer), "".join([*self.lines(trainer), json.dumps(line) + "\n"]))

    def headlines(self) -> dict[str, bool]:
        """Returns the main columns in the log, and whether higher is better."""
        return {
            f"score/{metric.column(name, self.n, metric.reference_count)}": up
            for metric in self.metrics.values()
            for name, up in metric.headlines.items()
        }

    def file(self, trainer: L.Trainer) -> Path:
        return Path(trainer.default_root_dir) / "scores.jsonl"

    def lines(self, trainer: L.Trainer) -> list[str]:
        """Returns the lines of the file up to this step."""
        file = self.file(trainer)
        lines = [line for line in read_lines(file) if line.strip()] if file.is_file() else []
        return [line + "\n" for line in lines if step_of(line, file) <= trainer.global_step]


def step_of(line: str, file: Path) -> int:
    """Returns the step of a line of scores.jsonl. Raises ValueError if it has none."""
    held = parse_json(line, f"a line of {file}", nan=True)
    if not isinstance(held, dict) or not isinstance(held.get("step"), int):
        raise ValueError(f"{file} has a line without a step; remove the line, or the file")
    return int(held["step"])


class ClosingScore(L.Callback):
    """After the last step, samples `count` held-out prompts, chosen at random, with the averaged weights and scores
    them: prompts with combinations that occur in training and, separately, half as many with combinations that do not;
    at least one per rank. If metric is None there is no score. A failing score gives a warning; the summary is still
    written."""

    def __init__(self, metric: PromptAccuracy | None, recipe: Recipe, count: int, seed: int = 1_000_000) -> None:
        if count < 1:
            raise ValueError(f"closing_score: count={count} must be at least 1")
        self.metric, self.recipe, self.count, self.seed = metric, recipe, count, seed
        self.scores: dict[str, float] = {}

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        try:
            self.close(trainer, pl_module)
        except Exception as error:  # any error: the run is complete and its summary must be written
            if trainer.is_global_zero:
                print(f"warning: no closing score: {type(error).__name__}: {first_line(error)}", file=sys.stderr)

    def close(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Samples, scores, and keeps the scores for the summary."""
        assert isinstance(pl_module, DiffusionModule)
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, PictureData)
        if self.metric is None:
            return
        sets = {"": self.prompts_of(data.val, max(self.count, trainer.world_size))}
        if data.unseen is not None:
            sets["_unseen"] = self.prompts_of(data.unseen, max(self.count // 2, trainer.world_size))
        with weights_for_sampling(trainer, pl_module):
            with raise_on_all_ranks():
                conditions = {suffix: EncodedPrompts(pl_module.pipeline, prompts) for suffix, prompts in sets.items()}
            for suffix, prompts in sets.items():
                texts, label = conditions[suffix], f"scoring prompts{suffix.replace('_', ', ')}"
                result = score(pl_module, {"": self.metric}, prompts, texts, self.seed, self.recipe, 128, label)
                if result is not None:
                    self.scores |= {name + suffix: value for name, value in result.scores.items()}

    @staticmethod
    def prompts_of(source: CaptionedImages, count: int) -> list[str]:
        """Returns at most `count` captions in a fixed random order."""
        return [source.captions[int(place)] for place in subset(len(source), count)]

    def headlines(self) -> dict[str, bool]:
        """Returns the main columns of the summary, and whether higher is better."""
        main = {} if self.metric is None else self.metric.headlines
        return {name + suffix: up for suffix in ("", "_unseen") for name, up in main.items()}

    def summary(self) -> dict[str, Any]:
        return self.scores
