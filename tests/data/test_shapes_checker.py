"""The shapes checker on pictures that are nearly right: what it accepts, and what it rejects."""

import numpy as np
import pytest
import torch

from dit.data.shapes import BACKGROUNDS, COLOURS, ONE, SHAPES, TAUGHT, TWO, Shapes, coverage
from dit.data.shapes_checker import ShapesChecker

RIGHT = {"size": True, "colour": True, "shape": True, "background": True}


def drawn(*objects, ground=BACKGROUNDS["white"], side=32):
    """(side, side, 3) float of (shape or coverage, colour, radius, centre) on a ground."""
    canvas = np.broadcast_to(np.array(ground, float), (side, side, 3)).copy()
    for shape, colour, radius, centre in objects:
        cover = coverage(shape, np.array([radius]), np.array([centre]), side)[0] if isinstance(shape, str) else shape
        canvas += cover[..., None] * (np.array(COLOURS[colour] if isinstance(colour, str) else colour) - canvas)
    return canvas


def checked(picture, caption):
    pixels = torch.from_numpy(np.rint(picture).clip(0, 255).astype(np.uint8)).permute(2, 0, 1)[None]
    return {name: bool(right[0]) for name, right in ShapesChecker()(pixels, [caption]).items()}


def wrong(picture, caption):
    return {name for name, right in checked(picture, caption).items() if not right}


MIDDLE = (16.0, 16.0)


@pytest.mark.parametrize("shape", SHAPES + TAUGHT)
class TestOneObject:
    def caption(self, shape, size="large", colour="red", ground="white"):
        return f"a {size} {colour} {shape} on a {ground} background"

    def test_a_radius_may_be_a_tenth_off_and_not_a_fifth(self, shape):
        for size in ("small", "large"):
            radius = sum(ONE.radius[size]) / 2
            for share, faults in ((0.9, set()), (1.0, set()), (1.1, set()), (0.82, {"size"}), (1.2, {"size"})):
                picture = drawn((shape, "red", share * radius, MIDDLE))
                assert wrong(picture, self.caption(shape, size)) == faults, (size, share)

    def test_a_colour_may_be_somewhat_off_and_not_far_from_all(self, shape):
        near = np.array(COLOURS["red"]) + np.array([-20, 15, 15])
        assert wrong(drawn((shape, near, 12, MIDDLE)), self.caption(shape)) == set()
        for colour in COLOURS:  # of which brown is none
            assert wrong(drawn((shape, (120, 100, 20), 12, MIDDLE)), self.caption(shape, colour=colour)) == {"colour"}

    def test_a_background_may_be_somewhat_off_and_not_between_two(self, shape):
        for ground, near, far in (("black", 20, 64), ("grey", 150, 190), ("white", 235, 190)):
            for level, faults in ((near, set()), (far, {"background"})):
                picture = drawn((shape, "red", 12, MIDDLE), ground=[level] * 3)
                assert wrong(picture, self.caption(shape, ground=ground)) == faults, level

    def test_a_speck_is_accepted_and_a_second_object_is_not(self, shape):
        for size, faults in ((2, set()), (5, {"size", "colour", "shape"})):
            picture = drawn((shape, "red", 7, (12.0, 12.0)))
            picture[-size - 1 : -1, -size - 1 : -1] = COLOURS["blue"]
            assert wrong(picture, self.caption(shape, "small")) == faults

    def test_an_object_between_two_shapes_is_rejected(self, shape):
        """Half of the shape, and a blob between it and each other shape."""
        cover = coverage(shape, np.array([12.0]), np.array([MIDDLE]), 32)[0]
        assert "shape" in wrong(drawn((np.where(np.arange(32) < 17, cover, 0), "red", 0, MIDDLE)), self.caption(shape))
        blurred = cover.copy()
        for _ in range(60):
            around = [np.roll(blurred, step, axis) for axis in (0, 1) for step in (-1, 1)]
            blurred = 0.5 * blurred + 0.125 * sum(around)
        assert "shape" in wrong(drawn((blurred, "red", 0, MIDDLE)), self.caption(shape))

    def test_noise_of_a_few_levels_is_accepted(self, shape):
        noise = np.random.default_rng(0).normal(0, 6, (32, 32, 3))
        assert wrong(drawn((shape, "red", 12, MIDDLE)) + noise, self.caption(shape)) == set()

    def test_a_picture_without_an_object_has_only_its_background_right(self, shape):
        assert checked(drawn(), self.caption(shape)) == dict.fromkeys(RIGHT, False) | {"background": True}


@pytest.mark.parametrize(("power", "shape"), [(2.0, "circle"), (3.0, None), (3.5, None), (4.0, None), (8.0, "square")])
def test_a_blob_between_circle_and_square_is_neither(power, shape):
    """|x|^p + |y|^p < r^p: its outline is within a pixel of both."""
    x, y = np.meshgrid(*2 * [(np.arange(320) + 0.5) / 10 - 16])
    cover = (np.abs(x / 12) ** power + np.abs(y / 12) ** power < 1).reshape(32, 10, 32, 10).mean((1, 3))
    for said in SHAPES:
        right = checked(drawn((cover, "red", 0, MIDDLE)), f"a large red {said} on a white background")["shape"]
        assert right == (said == shape), said


def pair(one, other, first=("square", "blue"), second=("circle", "red")):
    return drawn((*first, 10, one), (*second, 6, other), ground=BACKGROUNDS["grey"], side=48)


SAID = "a large blue square {} a small red circle on a grey background"


@pytest.mark.parametrize(("relation", "one", "other"), [
    ("left of", (12, 24), (36, 24)), ("right of", (36, 24), (12, 24)), ("above", (24, 12), (24, 36)), ("below", (24, 36), (24, 12)),
])  # fmt: skip
def test_a_relation_holds_for_the_positions_of_the_centres_only(relation, one, other):
    for said in ("left of", "right of", "above", "below"):
        assert wrong(pair(one, other), SAID.format(said)) == (set() if said == relation else {"relation"}), said


def test_a_relation_must_hold_more_along_its_axis_than_across():
    for relation, faults in (("left of", set()), ("above", {"relation"})):
        assert wrong(pair((13, 18), (36, 34)), SAID.format(relation)) == faults
    for relation, faults in (("left of", {"relation"}), ("above", set())):
        assert wrong(pair((18, 13), (34, 36)), SAID.format(relation)) == faults


def test_the_order_in_a_caption_is_not_the_order_in_the_picture():
    """The first object of a caption may be detected first or last, depending on its position."""
    assert wrong(pair((24, 36), (24, 12)), SAID.format("below")) == set()
    swapped = "a small red circle above a large blue square on a grey background"
    assert wrong(pair((24, 36), (24, 12)), swapped) == set()


def test_attributes_of_two_objects_are_checked_at_each_object():
    crossed = "a large red square left of a small blue circle on a grey background"
    assert wrong(pair((12, 24), (36, 24)), crossed) == {"colour"}
    crossed = "a small blue square left of a large red circle on a grey background"
    assert wrong(pair((12, 24), (36, 24)), crossed) == {"size"}


def test_one_object_for_two_and_two_for_one_are_wrong_in_all_but_the_background():
    single = drawn(("square", "blue", 10, (12, 24)), ground=BACKGROUNDS["grey"], side=48)
    assert wrong(single, SAID.format("left of")) == {"size", "colour", "shape", "relation"}
    picture = pair((12, 24), (36, 24))
    assert wrong(picture, "a large blue square on a grey background") == {"size", "colour", "shape"}
    third = drawn(("star", "green", 6, (24, 40)), ground=BACKGROUNDS["grey"], side=48)
    both = np.where((third != BACKGROUNDS["grey"]).any(-1, keepdims=True), third, picture)
    assert wrong(both, SAID.format("left of")) == {"size", "colour", "shape", "relation"}


def test_pairs_have_other_sizes():
    picture = drawn(
        ("square", "blue", 12, (12, 24)), ("circle", "red", 6, (36, 24)), ground=BACKGROUNDS["grey"], side=48
    )
    assert wrong(picture, SAID.format("left of")) == {"size"}
    assert TWO.radius["large"][1] < 12 * 0.86


@pytest.mark.parametrize("caption", [
    "a large red star on a black background, please", "so a large red star on a black background",
    "a large red star", "a large red star on a pink background",
])  # fmt: skip
def test_a_caption_that_says_more_or_less_is_refused(caption):
    with pytest.raises(ValueError, match="is not a caption of the shapes data"):
        ShapesChecker()(torch.from_numpy(Shapes("val", 1).images(np.array([0]))), [caption])
