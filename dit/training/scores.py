"""The closing score of a training run."""

from __future__ import annotations

from typing import Any

import lightning as L
from tqdm import tqdm

from dit.data.module import PictureData
from dit.metrics.prompt_accuracy import PromptAccuracy
from dit.pipeline import Recipe
from dit.training.diffusion import DiffusionModule
from dit.training.ema import weights_for_sampling
from dit.types import to_pixels


class ClosingScore(L.Callback):
    """After the last step, draws `count` held-out prompts with the averaged weights and judges every picture: prompts
    of combinations that training has seen, and apart from them half as many that it never has. Data without a judge
    (metric None) gets no score. Several processes share the prompts out and add up what they find."""

    def __init__(self, metric: PromptAccuracy | None, recipe: Recipe, count: int, seed: int = 1_000_000) -> None:
        if count < 1:
            raise ValueError(f"closing_score: count={count} must be at least 1")
        self.metric, self.recipe, self.count, self.seed = metric, recipe, count, seed
        self.scores: dict[str, float] = {}

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DiffusionModule)
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, PictureData)
        if self.metric is None:
            return
        self.metric.to(pl_module.device)  # where processes can add up its counts
        with weights_for_sampling(trainer, pl_module):
            self.scores = self._score(self.metric, pl_module, list(data.val.captions[: self.count]), "")
            if data.unseen is not None:
                prompts = list(data.unseen.captions[: max(self.count // 2, 1)])
                self.scores |= self._score(self.metric, pl_module, prompts, "_unseen")

    def _score(
        self, metric: PromptAccuracy, module: DiffusionModule, prompts: list[str], suffix: str
    ) -> dict[str, float]:
        trainer = module.trainer
        mine = range(trainer.global_rank, len(prompts), trainer.world_size)
        texts, seeds = [prompts[i] for i in mine], [self.seed + i for i in mine]
        label = f"scoring prompts{suffix.replace('_', ', ')}"
        metric.reset()
        if texts:
            with tqdm(total=len(texts), desc=label, unit="image", leave=False, disable=trainer.global_rank > 0) as bar:
                samples = module.pipeline(texts, seeds, self.recipe, batch_size=128, done=bar.update)
            metric.update(to_pixels(samples.images), texts)
        return {name + suffix: value for name, value in metric.compute().items()}

    def summary(self) -> dict[str, Any]:
        return self.scores
