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


def test_encodings_differ_by_words_and_by_order():
    encoder = WordEncoder(WORDS)
    one, other = encoder.encode(["red star", "star red"])[:1], encoder.encode(["star red"])
    assert (one.tokens - other.tokens).abs().max() > 0.5
    words = encoder.table / encoder.table.norm(dim=1, keepdim=True)
    torch.testing.assert_close(words @ words.T, torch.eye(len(WORDS)), atol=1e-5, rtol=0)


def test_a_long_prompt_is_cut_with_a_warning(capsys):
    encoder = WordEncoder(WORDS, length=3)
    condition = encoder.encode(["a large red star"])
    assert condition.mask.sum() == 3
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "cut after 3 words; lost: 'star'\n" in printed


def test_many_long_prompts_give_one_warning_with_their_count(capsys):
    encoder = WordEncoder(WORDS, length=3)
    fitted = encoder.fit(["a large red star", "A star!", "a small blue circle", "star star star star"])
    assert fitted == ["a large red", "A star!", "a small blue", "star star star"]
    assert encoder.fit(fitted) == fitted
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "lost: 'star', and of 2 more" in printed


def test_an_unknown_word_is_named():
    with pytest.raises(ValueError, match="not trained with 'zebra'; its captions have the words a, "):
        WordEncoder(["a", "star"]).encode(["a zebra"])
    with pytest.raises(
        ValueError, match=r"'stra'; written like these are 'star'; its captions have the words a, star$"
    ):
        WordEncoder(["a", "star"]).encode(["a stra"])


def test_the_same_words_give_the_same_vectors_in_any_process():
    assert torch.equal(WordEncoder(WORDS).table, WordEncoder(WORDS).table)
    assert WordEncoder(WORDS).fingerprint != WordEncoder(WORDS[1:]).fingerprint


@pytest.mark.parametrize(("few", "many"), [(3, 5), (16, 17), (10, 40), (20, 33)])
def test_appended_words_leave_the_vectors_of_the_others(few, many):
    words = [f"w{i}" for i in range(many)]
    before, after = WordEncoder(words[:few], width=16).table, WordEncoder(words, width=16).table
    assert torch.equal(after[:few], before)
    torch.testing.assert_close(after.norm(dim=1), torch.full((many,), 4.0))
    assert len({tuple(row.tolist()) for row in after}) == many


def test_a_vocabulary_extends_that_of_a_run():
    assert vocabulary(["a red cat", "an amber dog"], ["red", "cat", "bird"]) == [
        "red",
        "cat",
        "bird",
        "a",
        "amber",
        "an",
        "dog",
    ]


def test_pictures_without_captions_have_no_words():
    encoder = WordEncoder(vocabulary(["", ""]), length=4, width=16)
    condition = encoder.encode(["", ""])
    assert condition.mask.sum(1).tolist() == [1, 1]
    assert condition.tokens.abs().max() == condition.pooled.abs().max() == 0
    with pytest.raises(
        ValueError, match="'a cat': the model was trained on pictures without captions and takes no prompt"
    ):
        encoder.encode(["a cat"])
    with pytest.raises(ValueError, match=r"no caption has a word in it, e\.g\. '!!!'"):
        vocabulary(["!!!", ""])


def test_long_prompts_and_vocabularies_give_short_messages(capsys):
    long = "star " * 2000
    encoder = WordEncoder([f"w{i}" for i in range(5000)] + ["star"], length=3)
    encoder.fit([long])
    assert len(capsys.readouterr().err) < 200
    with pytest.raises(
        ValueError,
        match=r"not trained with 'zebra', .* its captions have 5001 words, all in RUN/config.yaml, text_encoder.words$",
    ) as error:
        encoder.ids("zebra xylophone " + "yak " * 2000)
    assert len(str(error.value)) < 1000
    with pytest.raises(
        ValueError,
        match=r"not trained with 'w40000', 'stars'; written like these are 'w4000', .*'star'; its captions have 5001 words, all in RUN/config.yaml, text_encoder.words$",
    ):
        encoder.ids("w40000 stars")


def test_an_ordered_pooled_text_holds_the_tokens_and_depends_on_the_order():
    words = ["a", "red", "blue", "star"]
    plain, ordered = WordEncoder(words, 6, 8), WordEncoder(words, 6, 8, ordered=True)
    prompts = ["a red star a blue star", "a blue star a red star"]
    assert ordered.sizes["pooled_dim"] == 48
    encoded = ordered.encode(prompts)
    assert torch.equal(encoded.pooled.unflatten(1, (6, 8)), encoded.tokens)
    assert not torch.allclose(*encoded.pooled)
    assert torch.allclose(*plain.encode(prompts).pooled)  # the sum of the words does not
    assert ordered.fingerprint != plain.fingerprint
