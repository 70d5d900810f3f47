"""Text encoders. Each is frozen, and behind `dit.types.TextEncoder`."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable, Sequence

import torch

from dit.layers.embeddings import sinusoid
from dit.types import Condition

WORD = re.compile(r"\w+")


def split_words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def vocabulary(captions: Iterable[str]) -> list[str]:
    """Every word of the captions, sorted."""
    return sorted({word for caption in set(captions) for word in split_words(caption)})


class WordEncoder:
    """A closed vocabulary, one fixed vector a word: no download, and order kept by a sinusoid of the place.

    tokens: (B, length, width), pooled: (B, width), the mean word. The vectors are orthonormal for up to `width` words,
    so a linear layer on top can learn any embedding table. A text that is too long is cut, with a warning; a word
    outside the vocabulary is an error that names it. The empty text is one zero token.
    """

    def __init__(self, words: Sequence[str], length: int = 16, width: int = 64) -> None:
        if not words:
            raise ValueError("text_encoder.words is empty: there is no caption to take words from")
        self.places = {word: place for place, word in enumerate(words)}
        self.length, self.width = length, width
        self.sizes = {"token_dim": width, "pooled_dim": width}
        table = torch.randn(max(len(words), width), width, generator=torch.Generator().manual_seed(0))
        table = torch.linalg.qr(table)[0] if len(words) <= width else torch.nn.functional.normalize(table, dim=1)
        self.table = table[: len(words)] * width**0.5
        self.position = sinusoid(torch.arange(length), width)
        self.fingerprint = hashlib.sha256(f"words {list(words)} {length} {width}".encode()).hexdigest()[:16]

    def ids(self, prompt: str) -> list[int]:
        words = split_words(prompt)
        unknown = [word for word in words if word not in self.places]
        if unknown:
            raise ValueError(
                f"prompt {prompt!r}: the model never saw {', '.join(map(repr, unknown))}; it knows the words "
                f"{' '.join(self.places)}"
            )
        return [self.places[word] for word in words]

    def fit(self, prompts: Sequence[str]) -> list[str]:
        fitted = [p if len(split_words(p)) <= self.length else " ".join(split_words(p)[: self.length]) for p in prompts]
        lost = [" ".join(split_words(a)[self.length :]) for a, b in zip(prompts, fitted, strict=True) if a != b]
        if lost:
            more = f", and of {len(lost) - 1} more" if len(lost) > 1 else ""
            print(f"warning: prompts are cut after {self.length} words; lost: {lost[0]!r}{more}", file=sys.stderr)
        return fitted

    def encode(self, prompts: Sequence[str]) -> Condition:
        tokens = torch.zeros(len(prompts), self.length, self.width)
        mask = torch.zeros(len(prompts), self.length, dtype=torch.bool)
        pooled = torch.zeros(len(prompts), self.width)
        for row, prompt in enumerate(self.fit(prompts)):
            ids = self.ids(prompt)
            mask[row, : max(len(ids), 1)] = True
            if ids:
                words = self.table[ids]
                tokens[row, : len(ids)] = words + self.position[: len(ids)]
                pooled[row] = words.mean(0) * len(ids) ** 0.5
        return Condition(tokens=tokens, mask=mask, pooled=pooled)

    def null(self) -> Condition:
        return self.encode([""])

    def to(self, device: torch.device | str) -> WordEncoder:
        return self
