"""The base class of pretrained text encoders."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cached_property
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dit.tensors import fingerprint
from dit.types import Condition

DTYPES = ("float32", "bfloat16", "float16")


def hidden_state_index(layer: int, depth: int) -> int:
    """Returns the index of a hidden state: 0 is before the first block, `depth` (layer -1) after the last."""
    if not -depth - 1 <= layer <= depth:
        raise ValueError(f"text_encoder.layer={layer}: the model has {depth} layers; choose 1 to {depth}, or -1 (last)")
    return layer % (depth + 1)


def tokenizer_settings(tokenizer: Any) -> list[object]:
    """Returns all settings of a tokenizer of transformers that change the tokens of a text."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # resets the state of the last call
    backend.no_padding()
    return [backend.to_str(), tokenizer.pad_token_id]


class PretrainedText:
    """A frozen text network (`dit.types.TextEncoder`). The model's tokenizer truncates long texts, with one warning for
    each text.

    Real tokens come first, padding after them. Padding is zero and outside the mask; with `keep_padding` it is encoded
    and in the mask, as in Stable Diffusion 1 to 3. The null condition is the encoded empty text; with `zero_null` it is
    all zeros (SDXL). Prompts are encoded `slice_size` at a time to bound the memory.
    """

    net: Any  # of an untyped library
    length: int
    sizes: dict[str, int]
    gradients = False  # for a learned token (`dit.encoders.learned_token`)

    def __init__(self, net: Any, keep_padding: bool = False, zero_null: bool = False, slice_size: int = 32) -> None:
        self.net = net.eval().requires_grad_(False)
        self.keep_padding, self.zero_null, self.slice_size = keep_padding, zero_null, slice_size
        self.warned: set[str] = set()

    def counts(self, prompts: Sequence[str]) -> list[int]:
        """Returns the number of tokens of each prompt without truncation."""
        raise NotImplementedError

    def token_ids(self, text: str) -> list[int]:
        """Returns the ids of a text's tokens, without the special ones before and after it."""
        raise NotImplementedError

    @property
    def vocabulary_size(self) -> int:
        """The number of tokens, which a tokenizer numbers roughly from the most frequent to the rarest."""
        raise NotImplementedError

    @property
    def embedding(self) -> nn.Embedding:
        """The layer that gives each token its vector."""
        raise NotImplementedError

    def states(self, prompts: Sequence[str], mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the states of the first W tokens (B, W, D), and the pooled vectors (B, P) or None.

        mask: (B, W) bool, True for real tokens.
        """
        raise NotImplementedError

    def settings(self) -> list[object]:
        """Returns all settings, except weights, that change the encoding."""
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
        """Returns the prompts unchanged: `encode` truncates by tokens. Prints one warning about all long prompts."""
        counts = dict(zip(prompts, self.counts(prompts), strict=True))
        long = [prompt for prompt, count in counts.items() if count > self.length and prompt not in self.warned]
        if long:
            more = f", and {len(long) - 1} more are too long" if len(long) > 1 else ""
            print(
                f"warning: prompts are cut after {self.length} tokens by {type(self).__name__}: "
                f"{shorten(long[0], 60)!r} has {counts[long[0]]}{more}",
                file=sys.stderr,
            )
            self.warned.update(long)
        return list(prompts)

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Returns tokens (B, length, token_dim) float32, mask (B, length), pooled (B, pooled_dim) float32 or None."""
        prompts = self.fit(prompts)
        slices = range(0, len(prompts), self.slice_size)
        with torch.set_grad_enabled(self.gradients):
            return Condition.cat([self._encode(prompts[first : first + self.slice_size]) for first in slices])

    def _encode(self, prompts: Sequence[str]) -> Condition:
        counts = torch.tensor(self.counts(prompts), device=self.device)
        real = counts.clamp(1, self.length)  # an empty text is encoded as one padding token
        mask = torch.arange(self.length, device=self.device) < real[:, None]  # (B, length)
        if self.keep_padding:
            mask = torch.ones_like(mask)
        width = self.length if self.keep_padding else int(real.max())
        tokens, pooled = self.states(prompts, mask[:, :width])  # (B, width, D)
        tokens = F.pad(tokens.float().masked_fill(~mask[:, :width, None], 0), (0, 0, 0, self.length - width))
        return Condition(tokens=tokens, mask=mask, pooled=None if pooled is None else pooled.float())

    def null(self) -> Condition:
        """Returns the encoded empty text, or zeros with `zero_null`."""
        empty = self.encode([""])
        if not self.zero_null:
            return empty
        assert empty.tokens is not None
        pooled = None if empty.pooled is None else torch.zeros_like(empty.pooled)
        return Condition(tokens=torch.zeros_like(empty.tokens), mask=empty.mask, pooled=pooled)
