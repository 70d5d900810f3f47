import pytest
import torch

from dit.encoders.text import WordEncoder, vocabulary

WORDS = vocabulary(["a large red star on a black background", "a small blue circle"])


def test_the_vocabulary_is_every_word_once():
    assert vocabulary(["A dog, a DOG!", "the dog's 2 cats"]) == ["2", "a", "cats", "dog", "s", "the"]


def test_shapes_mask_and_null():
    encoder = WordEncoder(WORDS, length=10, width=32)
    condition = encoder.encode(["a large red star", "a"])
    assert condition.tokens.shape == (2, 10, 32)
    assert condition.pooled.shape == (2, 32)
    assert condition.mask.sum(1).tolist() == [4, 1]
    null = encoder.null()
    assert null.mask.sum() == 1
    assert null.tokens.abs().max() == null.pooled.abs().max() == 0


def test_words_and_their_order_are_told_apart():
    encoder = WordEncoder(WORDS)
    one, other = encoder.encode(["red star", "star red"])[:1], encoder.encode(["star red"])
    assert (one.tokens - other.tokens).abs().max() > 0.5
    words = encoder.table / encoder.table.norm(dim=1, keepdim=True)
    torch.testing.assert_close(words @ words.T, torch.eye(len(WORDS)), atol=1e-5, rtol=0)


def test_a_long_prompt_is_cut_with_a_warning(capsys):
    encoder = WordEncoder(WORDS, length=3)
    condition = encoder.encode(["a large red star"])
    assert condition.mask.sum() == 3
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "cut after 3 words; lost: 'star'\n" in told


def test_many_long_prompts_are_told_once_with_their_count(capsys):
    encoder = WordEncoder(WORDS, length=3)
    fitted = encoder.fit(["a large red star", "A star!", "a small blue circle", "star star star star"])
    assert fitted == ["a large red", "A star!", "a small blue", "star star star"]
    assert encoder.fit(fitted) == fitted
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "lost: 'star', and of 2 more" in told


def test_an_unknown_word_is_named():
    with pytest.raises(ValueError, match="never saw 'zebra'"):
        WordEncoder(WORDS).encode(["a red zebra"])


def test_the_same_words_give_the_same_vectors_in_any_process():
    assert torch.equal(WordEncoder(WORDS).table, WordEncoder(WORDS).table)
    assert WordEncoder(WORDS).fingerprint != WordEncoder(WORDS[1:]).fingerprint


def test_an_empty_vocabulary_is_refused():
    with pytest.raises(ValueError, match="words"):
        WordEncoder([])
