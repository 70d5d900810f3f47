"""The scores of a training run: every so often, and when it is done."""

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
from dit.scoring.prompts import EncodedPrompts, held_out_prompts
from dit.scoring.references import protocol_fields, update_references
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
    """The verdict on a picture for every prompt, which all processes make together. None, and a warning, where there is
    none, for a training need not end by it."""
    trainer = module.trainer
    mine = len(range(trainer.global_rank, len(prompts), trainer.world_size))
    for metric in metrics.values():
        metric.to(module.device)  # where processes can add up what they find
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
    """At every step that `every` divides, what evaluate.py would find for a checkpoint of that step by the same recipe
    and numbers: logged as score/COLUMN, and written with all that they depend on as a line of RUN/scores.jsonl.

    The prompts are n held-out captions in random order (`held_out_prompts`); picture i comes from noise seed + i.
    Distances are measured to `references` of the held-out pictures, chosen at random (`subset_indices`), or to
    training's. All processes share the pictures out. It draws no random number of training's own, so a run with scores
    is the run without.
    """

    def __init__(
        self,
        metrics: Mapping[str, Any],
        recipe: Recipe,
        every: int,
        n: int = 256,
        seed: int = 0,
        references: int = 1024,
        train_references: int | None = None,
        batch_size: int = 128,
    ) -> None:
        for name, value in {"every": every, "n": n, "references": references, "batch_size": batch_size}.items():
            if value < 1:
                raise ValueError(f"callbacks.scores.{name}={value} must be at least 1")
        self.metrics = {name: metric for name, metric in metrics.items() if isinstance(metric, ImageMetric)}
        if not self.metrics:
            raise ValueError("callbacks.scores.every: there is no metric of pictures; choose some, e.g. metric=shapes")
        self.recipe, self.every, self.n, self.seed, self.batch_size = recipe, every, n, seed, batch_size
        self.counts = {"val": references, "train": train_references or sys.maxsize}
        self.prompts: list[str] = []
        self.texts: EncodedPrompts | None = None
        self.protocol: dict[str, Any] = {}
        self.done = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Encodes the prompts and shows the real pictures to the metrics, once for all scores. Raises ValueError where
        there are fewer pictures than processes."""
        assert isinstance(pl_module, DiffusionModule)
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, LatentData)
        if self.n < trainer.world_size:
            raise ValueError(f"callbacks.scores.n={self.n} is less than 1 for each of {trainer.world_size} processes")
        device = pl_module.device
        self.prompts = held_out_prompts(data.val.captions, self.n)
        pl_module.pipeline.text_encoder.to(device)
        self.texts = EncodedPrompts(pl_module.pipeline, self.prompts)
        pl_module.pipeline.text_encoder.to("cpu")  # as the data leaves it: it may be larger than what is trained
        for metric in self.metrics.values():
            metric.to(device)
        real = {"val": data.val, "train": data.train}
        update_references(self.metrics.values(), real, self.counts, data.cache_dir, self.batch_size)
        wanted = {metric.reference_split for metric in self.metrics.values()}
        references = {split: source for split, source in real.items() if split in wanted}
        looked = {name: m.extractor.protocol for name, m in self.metrics.items() if isinstance(m, FeatureMetric)}
        self.protocol = {
            **protocol_fields(self.prompts, self.seed, references, self.counts),
            "recipe": "of config.yaml",
            "precision": pl_module.pipeline.precision,
            "extractors": {name: dict(protocol) for name, protocol in looked.items()},
            "uint8": "round",
        }

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drops the lines that an interrupted run wrote after the step that is resumed."""
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
            verdict = score(
                pl_module, self.metrics, self.prompts, self.texts, self.seed, self.recipe, self.batch_size, "scoring"
            )
        if verdict is not None and trainer.is_global_zero:
            self.tell(trainer, weights, verdict)

    def tell(self, trainer: L.Trainer, weights: str, verdict: Scores) -> None:
        """To the logs, which count steps from 0, and to the file."""
        for logger in trainer.loggers:
            logger.log_metrics({f"score/{column}": v for column, v in verdict.scores.items()}, trainer.global_step - 1)
        line = {
            "step": trainer.global_step,
            "weights": weights,
            "protocol": self.protocol,
            "cost": {"nfe": verdict.nfe, "seconds": verdict.seconds},
            "scores": verdict.scores,
        }
        write_atomic(self.file(trainer), "".join([*self.lines(trainer), json.dumps(line) + "\n"]))

    def file(self, trainer: L.Trainer) -> Path:
        return Path(trainer.default_root_dir) / "scores.jsonl"

    def lines(self, trainer: L.Trainer) -> list[str]:
        """Those of the file up to this step."""
        file = self.file(trainer)
        lines = [line for line in read_lines(file) if line.strip()] if file.is_file() else []
        return [line + "\n" for line in lines if step_of(line, file) <= trainer.global_step]


def step_of(line: str, file: Path) -> int:
    """Raises ValueError where a line of scores.jsonl has no step."""
    held = parse_json(line, f"a line of {file}", nan=True)
    if not isinstance(held, dict) or not isinstance(held.get("step"), int):
        raise ValueError(f"{file} has a line without a step; remove the line, or the file")
    return int(held["step"])


class ClosingScore(L.Callback):
    """After the last step, draws pictures of `count` held-out prompts, chosen at random, with the averaged weights and
    judges every one: prompts of combinations that training has seen, and apart from them half as many that it never
    has, and at least one for every process. Data without a judge (metric None) gets no score; a score that fails costs
    a warning, and not the summary of a run that is done."""

    def __init__(self, metric: PromptAccuracy | None, recipe: Recipe, count: int, seed: int = 1_000_000) -> None:
        if count < 1:
            raise ValueError(f"closing_score: count={count} must be at least 1")
        self.metric, self.recipe, self.count, self.seed = metric, recipe, count, seed
        self.scores: dict[str, float] = {}

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        try:
            self.close(trainer, pl_module)
        except Exception as error:  # whatever it is, the run is done and its summary is worth more
            if trainer.is_global_zero:
                print(f"warning: no closing score: {type(error).__name__}: {first_line(error)}", file=sys.stderr)

    def close(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws, judges, and keeps the scores for the summary."""
        assert isinstance(pl_module, DiffusionModule)
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, PictureData)
        if self.metric is None:
            return
        asked = {"": self.prompts_of(data.val, max(self.count, trainer.world_size))}
        if data.unseen is not None:
            asked["_unseen"] = self.prompts_of(data.unseen, max(self.count // 2, trainer.world_size))
        with weights_for_sampling(trainer, pl_module):
            with raise_on_all_ranks():
                conditions = {suffix: EncodedPrompts(pl_module.pipeline, prompts) for suffix, prompts in asked.items()}
            for suffix, prompts in asked.items():
                texts, label = conditions[suffix], f"scoring prompts{suffix.replace('_', ', ')}"
                verdict = score(pl_module, {"": self.metric}, prompts, texts, self.seed, self.recipe, 128, label)
                if verdict is not None:
                    self.scores |= {name + suffix: value for name, value in verdict.scores.items()}

    @staticmethod
    def prompts_of(source: CaptionedImages, count: int) -> list[str]:
        """At most `count` captions in random order, always the same."""
        return [source.captions[int(place)] for place in subset(len(source), count)]

    def summary(self) -> dict[str, Any]:
        return self.scores
