"""What all pretrained text encoders share."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cached_property
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dit.tensors import fingerprint
from dit.types import Condition

DTYPES = ("float32", "bfloat16", "float16")


def place_of(layer: int, depth: int) -> int:
    """The number of blocks before the states of a hidden layer: 0 is before the first, `depth` or -1 after the last."""
    if not -depth - 1 <= layer <= depth:
        raise ValueError(f"text_encoder.layer={layer}: the model has {depth} layers; choose 1 to {depth}, or -1 (last)")
    return layer % (depth + 1)


def how_it_cuts(tokenizer: Any) -> list[object]:
    """All that decides into which tokens one of transformers' tokenizers cuts a text."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # what a call has left there
    backend.no_padding()
    return [backend.to_str(), tokenizer.pad_token_id]


class PretrainedText:
    """A frozen network that reads tokens, behind `dit.types.TextEncoder`. Texts that are too long are cut by the
    model's own tokenizer, told once each.

    Real tokens come first and padding after them. It is all zero and outside the mask, unless `keep_padding`, where it
    is encoded and counted as text, as Stable Diffusion 1 to 3 do. `zero_null` makes the null condition all zeros (SDXL)
    in place of the empty text's. Prompts are encoded `slice_size` at a time, so that memory stays bounded.
    """

    net: Any  # of a library that is not typed
    length: int
    sizes: dict[str, int]

    def __init__(self, net: Any, keep_padding: bool = False, zero_null: bool = False, slice_size: int = 32) -> None:
        self.net = net.eval().requires_grad_(False)
        self.keep_padding, self.zero_null, self.slice_size = keep_padding, zero_null, slice_size
        self.told: set[str] = set()

    def counts(self, prompts: Sequence[str]) -> list[int]:
        """The number of tokens of each prompt, if none were cut."""
        raise NotImplementedError

    def states(self, prompts: Sequence[str], mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """The states of the first W tokens, and the pooled vector where there is one. mask: (B, W), the real tokens.

        -> (B, W, D) and (B, P)
        """
        raise NotImplementedError

    def settings(self) -> list[object]:
        """All beside the weights that decides what is encoded."""
        raise NotImplementedError

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.net, type(self).__name__, self.keep_padding, self.zero_null, *self.settings())

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    def to(self, device: torch.device | str) -> PretrainedText:
        self.net.to(device)
        return self

    def fit(self, prompts: Sequence[str]) -> list[str]:
        """All prompts, whole: `encode` cuts by tokens, where no text may end. What it cuts is counted in one line."""
        counts = dict(zip(prompts, self.counts(prompts), strict=True))
        long = [prompt for prompt, count in counts.items() if count > self.length and prompt not in self.told]
        if long:
            more = f", and {len(long) - 1} more are too long" if len(long) > 1 else ""
            print(
                f"warning: prompts are cut after {self.length} tokens by {type(self).__name__}: "
                f"{shorten(long[0], 60)!r} has {counts[long[0]]}{more}",
                file=sys.stderr,
            )
            self.told.update(long)
        return list(prompts)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Condition:
        """tokens: (B, length, token_dim) float32, mask: (B, length), pooled: (B, pooled_dim) float32 or None."""
        prompts = self.fit(prompts)
        slices = range(0, len(prompts), self.slice_size)
        return Condition.cat([self._encode(prompts[first : first + self.slice_size]) for first in slices])

    def _encode(self, prompts: Sequence[str]) -> Condition:
        counts = torch.tensor(self.counts(prompts), device=self.device)
        real = counts.clamp(1, self.length)  # a text of no tokens is one token of padding
        mask = torch.arange(self.length, device=self.device) < real[:, None]  # (B, length)
        if self.keep_padding:
            mask = torch.ones_like(mask)
        width = self.length if self.keep_padding else int(real.max())
        tokens, pooled = self.states(prompts, mask[:, :width])  # (B, width, D)
        tokens = F.pad(tokens.float().masked_fill(~mask[:, :width, None], 0), (0, 0, 0, self.length - width))
        return Condition(tokens=tokens, mask=mask, pooled=None if pooled is None else pooled.float())

    def null(self) -> Condition:
        """The empty text, or zeros in its place."""
        empty = self.encode([""])
        if not self.zero_null:
            return empty
        assert empty.tokens is not None
        pooled = None if empty.pooled is None else torch.zeros_like(empty.pooled)
        return Condition(tokens=torch.zeros_like(empty.tokens), mask=empty.mask, pooled=pooled)
