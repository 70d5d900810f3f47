import pytest

from dit.encoders.classes import ClassEncoder, class_names


def test_a_class_is_encoded_as_its_index_and_the_null_condition_as_one_more():
    encoder = ClassEncoder(["cat", "dog"])
    assert encoder.encode(["dog", "cat", ""]).label.tolist() == [1, 0, 2]
    assert encoder.null().label.tolist() == [2]
    assert encoder.sizes == {"classes": 2}
    assert encoder.fingerprint != ClassEncoder(["dog", "cat"]).fingerprint


def test_an_unknown_class_name_is_refused():
    with pytest.raises(ValueError, match="'cow' is not a class of the model, whose classes are 'cat', 'dog'"):
        ClassEncoder(["cat", "dog"]).encode(["cat", "cow"])
    with pytest.raises(ValueError, match="takes no prompt"):
        ClassEncoder([]).encode(["cat"])


def test_a_prompt_may_be_the_index_of_a_class_unless_a_class_has_that_name():
    assert ClassEncoder(["cat", "dog"]).encode(["1", "0", "dog"]).label.tolist() == [1, 0, 1]
    assert ClassEncoder(["1", "0"]).encode(["1", "0"]).label.tolist() == [0, 1]
    with pytest.raises(ValueError, match="'2' is not a class of the model, whose classes are 'cat', 'dog', or 0 to 1"):
        ClassEncoder(["cat", "dog"]).encode(["2"])


def test_pictures_without_captions_have_no_class():
    assert class_names(["", ""]) == []
    assert ClassEncoder([]).encode(["", ""]).label.tolist() == [0, 0]
    assert ClassEncoder([]).sizes == {"classes": 0}


def test_the_classes_of_a_resumed_run_keep_their_order_and_take_no_more():
    assert class_names(["cat", "cat", "ant", "ant"], ["dog", "cat", "ant"]) == ["dog", "cat", "ant"]
    with pytest.raises(ValueError, match="has 2 classes, and not 'ant'"):
        class_names(["cat", "cat", "ant", "ant"], ["dog", "cat"])


def test_captions_that_describe_one_picture_each_are_not_classes():
    assert class_names(["dog", "cat", "dog", "cat"]) == ["cat", "dog"]
    with pytest.raises(ValueError, match=r"3 different captions of 5 pictures .* choose text_encoder=words or clip"):
        class_names(["a cat", "a cat on a mat", "a dog", "a dog", "a dog"])
