"""A trained input vector for one token of a frozen text encoder (textual inversion, arXiv:2208.01618)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dit.encoders.joined import Joined
from dit.encoders.pretrained import PretrainedText
from dit.encoders.text import WordEncoder, split_words
from dit.types import Condition, TextEncoder


def parts_of(encoder: TextEncoder) -> Iterator[TextEncoder]:
    """Yields the encoders that a joined one consists of; otherwise the encoder itself."""
    if isinstance(encoder, Joined):
        for part in encoder.parts:
            yield from parts_of(part)
    else:
        yield encoder


class LearnedToken(nn.Module):
    """The vectors of a token, one for each part of a text encoder, which reads them from here once this object exists.

    start: a text whose words the vectors begin as the mean of, such as the subject's class; words that the encoder does
    not have are left out, and without any the vectors begin as they are. Only `encode` has gradients.
    """

    def __init__(self, encoder: TextEncoder, token: str, start: str = "") -> None:
        super().__init__()
        self.encoder = encoder
        self.vectors = nn.ParameterList()
        for number, part in enumerate(parts_of(encoder)):
            if isinstance(part, WordEncoder):
                index = part.ids(token)[0]
                words = [part.indices[word] for word in split_words(start) if word in part.indices] or [index]
                self.vectors.append(nn.Parameter(part.table[words].mean(0)))
                part.learned[index] = partial(self.vector, number)
            elif isinstance(part, PretrainedText):
                [index] = part.token_ids(f"a {token}")[len(part.token_ids("a")) :]
                weight = part.embedding.weight
                words = part.token_ids(start) or [index]
                self.vectors.append(nn.Parameter(weight[words].float().mean(0)))
                for layer in part.net.modules():  # T5 has the same weight in two layers
                    if getattr(layer, "weight", None) is weight and isinstance(layer, nn.Embedding):
                        layer.register_forward_hook(partial(self.replace, number, index))
            else:
                raise ValueError(f"data.learn_token=true: {type(part).__name__} has no vectors of tokens to train")

    def vector(self, number: int) -> Tensor:
        """Returns the vector (D,) of a part: read at each use, because loading weights replaces the parameter."""
        return self.vectors[number]

    def replace(self, number: int, index: int, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Returns the output (B, L, D) of an embedding with the vector where its input has the token, as a hook."""
        return torch.where((args[0] == index)[..., None], self.vector(number).to(output), output)

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Returns the condition of the prompts, with gradients for the vectors."""
        parts = list(parts_of(self.encoder))
        for part in parts:
            part.gradients = True  # type: ignore[attr-defined]
        try:
            return self.encoder.encode(prompts)
        finally:
            for part in parts:
                part.gradients = False  # type: ignore[attr-defined]
