"""Encodes the captions of a batch that have a learned token, with gradients for its vectors."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from dit.data.module import Pictures
from dit.data.order import Visit
from dit.encoders.learned_token import LearnedToken
from dit.types import Batch, CaptionedImages, Condition, pad_to_longest, to_device


class LearnedCaptions:
    """Replaces the text conditions of the samples whose caption has the token, unless caption dropout has removed it.

    source, seed: of the training data, whose captions are chosen as by `Pictures`. change: a last change of the
    condition, such as to remove padding.
    """

    def __init__(
        self,
        learned: LearnedToken,
        token: str,
        source: CaptionedImages,
        seed: int,
        caption_dropout: float,
        change: Callable[[Condition], Condition],
    ) -> None:
        self.learned, self.token, self.caption_dropout, self.change = learned, token, caption_dropout, change
        self.pictures = Pictures(source, seed)

    def __call__(self, batch: Batch) -> Batch:
        assert batch.uniform is not None
        visits = [Visit(*pair) for pair in zip(batch.index.tolist(), batch.epoch.tolist(), strict=True)]
        captions = [self.pictures.caption(visit) for visit in visits]
        kept = (batch.uniform[:, 1] >= self.caption_dropout).tolist()
        rows = [row for row, text in enumerate(captions) if self.token in text and kept[row]]
        if not rows:
            return self.without_token(batch)
        device = batch.x0.device
        self.learned.encoder.to(device)
        new = self.change(self.learned.encode([captions[row] for row in rows])).to(device)
        old, new = pad_to_longest([batch.condition, new])
        places, parts = to_device(torch.tensor(rows), device), new.parts

        def put(name: str, value: Tensor) -> Tensor:
            return value.index_copy(0, places, parts[name].to(value.dtype))

        changed = copy.copy(batch)
        changed.condition = old.map(put)
        return changed

    def without_token(self, batch: Batch) -> Batch:
        """Returns the same batch, whose loss has gradients of zero for the vectors: with several processes, each must
        have a gradient for every parameter."""
        changed, nothing = copy.copy(batch), 0 * sum(vector.sum() for vector in self.learned.vectors)
        name = "tokens" if batch.condition.tokens is not None else "pooled"
        changed.condition = batch.condition.map(lambda part, value: value + nothing if part == name else value)
        return changed
