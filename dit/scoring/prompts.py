"""Selects the prompts to score, and encodes each of them once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from dit.data.order import subset
from dit.pipeline import Pipeline
from dit.types import Condition


def held_out_prompts(captions: Sequence[str], n: int) -> list[str]:
    """Returns n held-out captions in a fixed random order; a larger n begins with those of a smaller one. Captions are
    repeated if there are fewer than n."""
    order = subset(len(captions), n)
    return [captions[order[i % len(order)]] for i in range(n)]


def digest_of_prompts(prompts: Sequence[str]) -> str:
    """Returns the digest of the prompts for a protocol, 16 hex digits."""
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16]


class EncodedPrompts:
    """Prompts as conditions: `texts[rows]` is the condition of the prompts with these indices. Each distinct prompt is
    encoded once and kept, unless all of them together exceed LARGE bytes."""

    LARGE = 2**31  # bytes

    def __init__(self, pipeline: Pipeline, prompts: Sequence[str], batch_size: int = 64) -> None:
        self.pipeline, self.prompts = pipeline, prompts
        distinct = list(dict.fromkeys(prompts))
        place = {prompt: row for row, prompt in enumerate(distinct)}
        self.place = torch.tensor([place[prompt] for prompt in prompts])
        first = pipeline.encode(distinct[:batch_size]).to("cpu")
        self.kept: Condition | None = None
        if first.nbytes / len(first) * len(distinct) <= self.LARGE:
            rest = (distinct[i : i + batch_size] for i in range(batch_size, len(distinct), batch_size))
            self.kept = Condition.cat([first, *(pipeline.encode(part).to("cpu") for part in rest)])

    def __getitem__(self, rows: Tensor) -> Condition:
        if self.kept is not None:
            return self.kept[self.place[rows]]
        return self.pipeline.encode([self.prompts[int(row)] for row in rows])
