"""A frozen text encoder with a closed vocabulary (`dit.types.TextEncoder`)."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches

import torch

from dit.diffusion.noise import generator
from dit.errors import shortened, some
from dit.layers.embeddings import sinusoid
from dit.types import Condition

WORD = re.compile(r"\w+")


def split_words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def vocabulary(captions: Iterable[str], known: Sequence[str] = ()) -> list[str]:
    """Returns the distinct words of the captions, sorted. The words of an earlier run (`known`) come first and in their
    order, so that each keeps its vector.

    Raises ValueError if no caption has a word and not all captions are empty.
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
    """Returns vectors (count, width) float32 of norm sqrt(width), each a fixed function of its index: the first `width`
    are orthogonal, later ones random."""
    random = torch.randn(width, width, generator=torch.Generator().manual_seed(0))
    rows = list(torch.linalg.qr(random)[0][:count])
    for index in range(width, count):
        row = torch.randn(width, generator=generator(0, index))
        rows.append(row / row.norm())
    return torch.stack(rows) * width**0.5 if rows else torch.zeros(0, width)


class WordEncoder:
    """A closed vocabulary with one fixed vector per word plus a sinusoidal position embedding; needs no download.

    tokens: (B, length, width); pooled: (B, width), the sum of the word vectors over sqrt(number of words), or with
    `ordered` (B, length * width), all tokens side by side, for captions in which each place has one meaning. Up to
    `width` words have orthogonal vectors, so a linear layer on top can learn any embedding table; appended words do not
    change earlier vectors. Long texts are truncated with a warning; an unknown word raises ValueError. The empty text
    is one zero token. Without words only the empty text can be encoded (pictures without captions). learned: index -> a
    function that returns a trained vector (`dit.encoders.learned_token`), which has gradients only with `gradients`.
    """

    def __init__(self, words: Sequence[str], length: int = 16, width: int = 64, ordered: bool = False) -> None:
        self.ordered = ordered
        self.indices = {word: index for index, word in enumerate(words)}
        self.length, self.width = length, width
        self.sizes = {"token_dim": width, "pooled_dim": length * width if ordered else width}
        self.table = table(len(words), width)
        self.learned: dict[int, Callable[[], torch.Tensor]] = {}
        self.gradients = False
        self.position = sinusoid(torch.arange(length), width)
        kind = f"words {list(words)} {length} {width}" + (" ordered" if ordered else "")
        self.fingerprint = hashlib.sha256(kind.encode()).hexdigest()[:16]

    def ids(self, prompt: str) -> list[int]:
        words = split_words(prompt)
        unknown = [word for word in words if word not in self.indices]
        if unknown and not self.indices:
            raise ValueError(
                f"prompt {shortened(prompt)!r}: the model was trained on pictures without captions and takes no prompt"
            )
        if unknown:
            raise ValueError(
                f"prompt {shortened(prompt)!r}: the model was not trained with {some(map(repr, unknown), 8)}; "
                f"{self.nearest_words(unknown)}"
            )
        return [self.indices[word] for word in words]

    def nearest_words(self, unknown: Sequence[str]) -> str:
        """Returns a phrase with the known words that are written like the unknown ones, and all if they are few. Known
        are the words of the captions of training and validation."""
        close = dict.fromkeys(
            near for word in dict.fromkeys(unknown[:8]) for near in get_close_matches(word, self.indices, n=3)
        )
        written = f"written like these are {some(map(repr, close), 8)}; " if close else ""
        number = len(self.indices)
        if number <= 60:
            return f"{written}its captions have the words {some(self.indices, 60)}"
        return f"{written}its captions have {number} words, all in RUN/config.yaml, text_encoder.words"

    def fit(self, prompts: Sequence[str]) -> list[str]:
        fitted = [p if len(split_words(p)) <= self.length else " ".join(split_words(p)[: self.length]) for p in prompts]
        lost = [" ".join(split_words(a)[self.length :]) for a, b in zip(prompts, fitted, strict=True) if a != b]
        if lost:
            more = f", and of {len(lost) - 1} more" if len(lost) > 1 else ""
            first = shortened(lost[0])
            print(f"warning: prompts are cut after {self.length} words; lost: {first!r}{more}", file=sys.stderr)
        return fitted

    def vectors(self, ids: Sequence[int]) -> torch.Tensor:
        """Returns the vectors (N, width) of words."""
        if not self.learned.keys() & set(ids):
            return self.table[ids]
        rows = [self.learned[i]().to(self.table) if i in self.learned else self.table[i] for i in ids]
        return torch.stack(rows if self.gradients else [row.detach() for row in rows])

    def encode(self, prompts: Sequence[str]) -> Condition:
        tokens = torch.zeros(len(prompts), self.length, self.width)
        mask = torch.zeros(len(prompts), self.length, dtype=torch.bool)
        pooled = torch.zeros(len(prompts), self.width)
        for row, prompt in enumerate(self.fit(prompts)):
            ids = self.ids(prompt)
            mask[row, : max(len(ids), 1)] = True
            if ids:
                words = self.vectors(ids)
                tokens[row, : len(ids)] = words + self.position[: len(ids)]
                pooled[row] = words.mean(0) * len(ids) ** 0.5
        return Condition(tokens=tokens, mask=mask, pooled=tokens.flatten(1) if self.ordered else pooled)

    def null(self) -> Condition:
        return self.encode([""])

    def to(self, device: torch.device | str) -> WordEncoder:
        return self
