import pytest

from dit.encoders.classes import ClassEncoder


def test_a_class_is_its_place_and_no_text_is_one_more():
    encoder = ClassEncoder(["cat", "dog"])
    assert encoder.encode(["dog", "cat", ""]).label.tolist() == [1, 0, 2]
    assert encoder.null().label.tolist() == [2]
    assert encoder.sizes == {"classes": 2}
    assert encoder.fingerprint != ClassEncoder(["dog", "cat"]).fingerprint


def test_a_name_that_is_no_class_is_refused():
    with pytest.raises(ValueError, match="'cow' is no class of the model, whose classes are 'cat', 'dog'"):
        ClassEncoder(["cat", "dog"]).encode(["cat", "cow"])
    with pytest.raises(ValueError, match="names is empty"):
        ClassEncoder([])
