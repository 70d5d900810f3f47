"""What every score of pictures has in common."""

from __future__ import annotations

from collections.abc import Sequence

import torchmetrics
from torch import Tensor


class ImageMetric(torchmetrics.Metric):
    """A torchmetrics metric over uint8 pictures and their prompts that answers with named numbers.

    `reference` is told real pictures, once; `reset` forgets the judged pictures and keeps the reference. States are
    sums, so several processes agree. `to` moves the networks within, before the reference is shown; pictures may lie
    anywhere.

    label: the column that stands for the whole metric. higher_is_better: what it says of that column.
    """

    full_state_update = False
    label: str
    higher_is_better: bool

    def reference(self, images: Tensor, captions: Sequence[str]) -> None:
        """images: (N, 3, H, W) uint8 real pictures with their captions. Ignored where none are needed.

        Raises ValueError when the metric cannot tell these real pictures from wrong ones, and so must not be trusted.
        """

    def update(self, images: Tensor, prompts: Sequence[str]) -> None:
        """images: (N, 3, H, W) uint8, and the N prompts that they were made from."""
        raise NotImplementedError

    def compute(self) -> dict[str, float]:
        raise NotImplementedError
