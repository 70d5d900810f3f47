"""Prompt accuracy: the share of pictures with the attributes of their prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dit.metrics.base import ImageMetric, MetricResult
from dit.types import Checker


class PromptAccuracy(ImageMetric):
    """prompt_accuracy: the share of pictures with all attributes correct; accuracy_NAME: with this one correct."""

    def __init__(self, checker: Checker) -> None:
        super().__init__()
        self.checker, self.headlines = checker, {"prompt_accuracy": True}
        self.names: list[str] = []
        self.add_state("right", default=[], dist_reduce_fx="cat")

    def update_samples(self, images: Tensor, prompts: Sequence[str]) -> None:
        correct = self.checker(images, prompts)
        self.names = sorted(correct)
        table = torch.stack([torch.from_numpy(correct[name]) for name in self.names], dim=1)  # (N, attributes)
        self.keep("right", table.to(self.device))

    def compute_scores(self) -> MetricResult:
        right = self.kept("right").bool()
        each = {"prompt_accuracy": right.all(1)} | {f"accuracy_{n}": right[:, i] for i, n in enumerate(self.names)}
        return MetricResult({name: float(values.double().mean()) for name, values in each.items()}, each)
