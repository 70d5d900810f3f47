"""How many pictures show what their prompt says."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dit.metrics.base import ImageMetric
from dit.types import Checker


class PromptAccuracy(ImageMetric):
    """prompt_accuracy: the share of pictures with every attribute right; accuracy_NAME: with that attribute right."""

    label, higher_is_better = "prompt_accuracy", True
    right: Tensor
    count: Tensor

    def __init__(self, checker: Checker) -> None:
        super().__init__()
        self.checker = checker
        self.names: list[str] = []
        self.add_state("right", default=torch.zeros(16, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, images: Tensor, prompts: Sequence[str]) -> None:
        judged = self.checker(images, prompts)
        self.names = sorted(judged)
        table = torch.stack([torch.from_numpy(judged[name]) for name in self.names])  # (attributes, N)
        self.right[0] += int(table.all(0).sum())
        self.right[1 : 1 + len(table)] += table.sum(1).to(self.right.device)
        self.count += len(images)

    def compute(self) -> dict[str, float]:
        share = (self.right.double() / self.count).tolist()
        return {"prompt_accuracy": share[0]} | {f"accuracy_{n}": share[1 + i] for i, n in enumerate(self.names)}
