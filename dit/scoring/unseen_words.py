"""Words of prompts that no training caption contains: a model cannot know what they mean."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from dit.encoders.text import WORD, split_words


def training_words(captions: Iterable[str]) -> set[str]:
    """Returns the distinct words of captions, in lower case."""
    return {word for caption in set(captions) for word in split_words(caption)}


def unseen_words(prompts: Iterable[str], known: Collection[str]) -> list[str]:
    """Returns the distinct words of prompts that are not known, sorted."""
    return sorted({word for prompt in set(prompts) for word in split_words(prompt)} - set(known))


def marked(prompt: str, known: Collection[str]) -> str:
    """Returns a prompt with asterisks around each word that is not known: a red *zebra*."""
    return WORD.sub(lambda found: found[0] if found[0].lower() in known else f"*{found[0]}*", prompt)
