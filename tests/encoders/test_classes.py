import pytest

from dit.encoders.classes import ClassEncoder, class_names


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


def test_captions_that_describe_one_picture_each_are_no_classes():
    assert class_names(["dog", "cat", "dog", "cat"]) == ["cat", "dog"]
    with pytest.raises(ValueError, match=r"3 different captions of 5 pictures .* choose text_encoder=words or clip"):
        class_names(["a cat", "a cat on a mat", "a dog", "a dog", "a dog"])
