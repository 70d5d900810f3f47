"""Words of prompts that training never contained."""

from dit.scoring.unseen_words import marked, training_words, unseen_words


def test_words_are_compared_without_case_and_marks_keep_the_text():
    known = training_words(["A red cat", "a blue dog!"])
    assert known == {"a", "red", "cat", "blue", "dog"}
    assert unseen_words(["a Red zebra", "two zebras, a cat"], known) == ["two", "zebra", "zebras"]
    assert marked("Two red-ish CATS, a cat.", known) == "*Two* red-*ish* *CATS*, a cat."
    assert marked("a red dog", known) == "a red dog"
    assert not unseen_words([], known)
