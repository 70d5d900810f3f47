"""Text encoders. Each is frozen, and behind `dit.types.TextEncoder`."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable, Sequence

import torch

from dit.diffusion.noise import generator
from dit.errors import shortened, some
from dit.layers.embeddings import sinusoid
from dit.types import Condition

WORD = re.compile(r"\w+")


def split_words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def vocabulary(captions: Iterable[str], known: Sequence[str] = ()) -> list[str]:
    """Every word of the captions, sorted; those of an earlier run (`known`) first and in their order, so that each
    keeps its vector. Pictures without captions have none.

    Raises ValueError where there are captions, and no words in them.
    """
    texts = set(captions)
    words = {word for text in texts for word in split_words(text)}
    if not words and any(texts):
        raise ValueError(
            f"no caption has a word in it, e.g. {shortened(max(texts))!r}; write captions, or train without by "
            f"data.captions=none"
        )
    return [*known, *sorted(words - set(known))]


def table(count: int, width: int) -> torch.Tensor:
    """A vector for each of `count` places, (count, width) float32 of norm sqrt(width), that is a function of the place:
    orthogonal ones for the first `width`, random ones after them."""
    random = torch.randn(width, width, generator=torch.Generator().manual_seed(0))
    rows = list(torch.linalg.qr(random)[0][:count])
    for place in range(width, count):
        row = torch.randn(width, generator=generator(0, place))
        rows.append(row / row.norm())
    return torch.stack(rows) * width**0.5 if rows else torch.zeros(0, width)


class WordEncoder:
    """A closed vocabulary, one fixed vector a word: no download, and order kept by a sinusoid of the place.

    tokens: (B, length, width), pooled: (B, width), the mean word. The vectors are orthogonal for up to `width` words,
    so a linear layer on top can learn any embedding table; more words leave those before them as they are. A text that
    is too long is cut, with a warning; a word outside the vocabulary is an error that names it. The empty text is one
    zero token, and the only text of an encoder without words: a model of pictures without captions.
    """

    def __init__(self, words: Sequence[str], length: int = 16, width: int = 64) -> None:
        self.places = {word: place for place, word in enumerate(words)}
        self.length, self.width = length, width
        self.sizes = {"token_dim": width, "pooled_dim": width}
        self.table = table(len(words), width)
        self.position = sinusoid(torch.arange(length), width)
        self.fingerprint = hashlib.sha256(f"words {list(words)} {length} {width}".encode()).hexdigest()[:16]

    def ids(self, prompt: str) -> list[int]:
        words = split_words(prompt)
        unknown = [word for word in words if word not in self.places]
        if unknown and not self.places:
            raise ValueError(
                f"prompt {shortened(prompt)!r}: the model was trained on pictures without captions and takes no prompt"
            )
        if unknown:
            raise ValueError(
                f"prompt {shortened(prompt)!r}: the model never saw {some(map(repr, unknown), 8)}; it was trained with "
                f"the words {some(self.places, 60)}"
            )
        return [self.places[word] for word in words]

    def fit(self, prompts: Sequence[str]) -> list[str]:
        fitted = [p if len(split_words(p)) <= self.length else " ".join(split_words(p)[: self.length]) for p in prompts]
        lost = [" ".join(split_words(a)[self.length :]) for a, b in zip(prompts, fitted, strict=True) if a != b]
        if lost:
            more = f", and of {len(lost) - 1} more" if len(lost) > 1 else ""
            first = shortened(lost[0])
            print(f"warning: prompts are cut after {self.length} words; lost: {first!r}{more}", file=sys.stderr)
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
