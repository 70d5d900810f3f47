"""A learned token changes the texts that have it, and only these; its vector has the right gradient."""

import pytest
import torch

from dit.encoders.huggingface import ClipText, LanguageModelText, T5Text
from dit.encoders.joined import AlongTokens
from dit.encoders.learned_token import LearnedToken
from dit.encoders.open_clip import OpenClipText
from dit.encoders.text import WordEncoder

from .folders import save_clip, save_language_model, save_open_clip, save_t5

TEXTS = ["a red star", "a blue star", ""]
MAKE = {
    "words": lambda folder: WordEncoder(["a", "red", "blue", "star", "circle"], 8, 16),
    "clip": lambda folder: ClipText(str(save_clip(folder))),
    "t5": lambda folder: T5Text(str(save_t5(folder)), length=8),
    "llm": lambda folder: LanguageModelText(str(save_language_model(folder)), length=8, dtype="float32"),
    "open_clip": lambda folder: OpenClipText(f"local-dir:{save_open_clip(folder)}"),
    "joined": lambda folder: AlongTokens([ClipText(str(save_clip(folder))), ClipText(str(save_clip(folder)))]),
}


@pytest.mark.parametrize("kind", MAKE)
def test_a_vector_changes_only_the_texts_with_its_token(kind, tmp_path):
    encoder = MAKE[kind](tmp_path / kind)
    before = encoder.encode(TEXTS)
    learned = LearnedToken(encoder, "red")
    same = encoder.encode(TEXTS)
    for name, part in before.parts.items():
        torch.testing.assert_close(same.parts[name], part)
    with torch.no_grad():
        for vector in learned.vectors:
            vector += 0.5
    after = encoder.encode(TEXTS)
    assert not any(part.requires_grad for part in after.parts.values())
    assert not torch.allclose(after.tokens[0], before.tokens[0])
    torch.testing.assert_close(after.tokens[1:], before.tokens[1:])


@pytest.mark.parametrize("kind", MAKE)
def test_the_gradient_is_that_of_the_encoder(kind, tmp_path):
    """Against central differences along a random direction."""
    encoder = MAKE[kind](tmp_path / kind)
    learned = LearnedToken(encoder, "red")
    draw = torch.Generator().manual_seed(0)
    ways = [torch.randn(vector.shape, generator=draw) for vector in learned.vectors]

    def value(condition):
        weights = torch.linspace(-1, 1, condition.tokens.numel()).view_as(condition.tokens)
        return (condition.tokens * weights).sum()

    value(learned.encode(TEXTS)).backward()
    slope = sum((vector.grad * way).sum() for vector, way in zip(learned.vectors, ways, strict=True))
    values = []
    for step in (0.003, -0.006):
        with torch.no_grad():
            for vector, way in zip(learned.vectors, ways, strict=True):
                vector += step * way
        values.append(value(encoder.encode(TEXTS)))
    assert slope.abs() > 1e-3
    torch.testing.assert_close((values[0] - values[1]) / 0.006, slope, rtol=0.03, atol=0.03)


def test_a_vector_begins_as_the_mean_of_the_words_of_its_class(tmp_path):
    words = WordEncoder(["a", "star", "circle", "sks"], 8, 16)
    (vector,) = LearnedToken(words, "sks", "star circle dog").vectors
    torch.testing.assert_close(vector.detach(), words.table[1:3].mean(0))
    clip = ClipText(str(save_clip(tmp_path / "clip")))
    (vector,) = LearnedToken(clip, "red", "star").vectors
    torch.testing.assert_close(vector.detach(), clip.embedding.weight[clip.token_ids("star")[0]].detach())
