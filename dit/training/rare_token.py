"""Checks the token that stands for a subject in captions."""

from __future__ import annotations

from collections.abc import Sequence

from dit.encoders.learned_token import parts_of
from dit.encoders.pretrained import PretrainedText
from dit.encoders.text import WordEncoder, split_words
from dit.types import TextEncoder

ORDINARY = 0.15  # this first part of a tokenizer's vocabulary has its most frequent tokens
REMEDY = "choose a rare one, such as data.token=sks"


def check_token(token: str, encoder: TextEncoder, trained: Sequence[str]) -> None:
    """Raises ValueError if the text encoder splits the token, if it is an ordinary word, or if the encoder has no
    tokens. trained: the words that the initial weights were trained with, if the encoder has a vocabulary of words."""
    for part in parts_of(encoder):
        if isinstance(part, WordEncoder):
            words = split_words(token)
            if len(words) != 1:
                raise ValueError(f"data.token={token} is {len(words)} words, {words}; {REMEDY}")
            if words[0] in trained:
                raise ValueError(
                    f"data.token={token} is an ordinary word of the initial weights, whose meaning would be lost; "
                    f"{REMEDY}"
                )
        elif isinstance(part, PretrainedText):
            check_in_tokenizer(token, part)
        else:
            raise ValueError(f"data.token={token}: {type(part).__name__} reads no words; choose another text_encoder")


def check_in_tokenizer(token: str, encoder: PretrainedText) -> None:
    before, after = encoder.token_ids("a"), encoder.token_ids(f"a {token}")
    ids, name = after[len(before) :], type(encoder).__name__
    if after[: len(before)] != before or len(ids) != 1:
        raise ValueError(f"data.token={token}: the tokenizer of {name} splits it into {len(ids)} tokens; {REMEDY}")
    if ids[0] < ORDINARY * encoder.vocabulary_size:
        raise ValueError(
            f"data.token={token} is an ordinary word: token {ids[0]} of the {encoder.vocabulary_size} of {name}, which "
            f"are sorted by frequency; {REMEDY}"
        )
