"""Pictures match their captions to the pixel, and their random draws have the right distribution."""

import itertools

import numpy as np
import pytest
from matplotlib.path import Path

from dit.data.shapes import (
    BACKGROUNDS,
    COLOURS,
    CORNERS,
    ONE,
    SHAPES,
    SIZES,
    TAUGHT,
    TWO,
    Shapes,
    coverage,
    picture_numbers,
    uniform,
    unit_area,
    unit_perimeter,
)

INNER = {"square": np.sqrt(0.5), "triangle": 0.5, "star": 0.45}  # of the corners half-way between those at radius 1
NUMBER = {"square": 4, "triangle": 3, "star": 5}


def outline(shape):
    """(K, 2) corners at circumradius 1 with y downwards: one points up, and a square has horizontal sides."""
    if shape == "circle":
        angles = np.linspace(0, 2 * np.pi, 2000, endpoint=False)
        return np.stack([np.cos(angles), np.sin(angles)], 1)
    if shape == "heart":
        return heart()
    n = NUMBER[shape]
    angles = np.arange(2 * n) * np.pi / n + (np.pi / 4 if shape == "square" else 0)
    radii = np.where(np.arange(2 * n) % 2, INNER[shape], 1.0)
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], 1)


def heart():
    """(K, 2) points: a tip below and two half circles above, moved to the centroid and scaled to circumradius 1."""
    turn = np.linspace(0, np.pi, 2000)
    left, right = (
        np.array([side / 2, -0.5]) + np.sqrt(0.5) * np.stack([np.cos(angle), -np.sin(angle)], 1)
        for side, angle in ((-1, np.pi * 1.25 - turn), (1, np.pi * 0.75 - turn))
    )
    points = np.concatenate([[[0, 1]], left, right])
    x, y = points.T
    cross = x * np.roll(y, -1) - y * np.roll(x, -1)
    centroid = (cross[:, None] * (points + np.roll(points, -1, 0))).sum(0) / (3 * cross.sum())
    return (points - centroid) / np.hypot(*(points - centroid).T).max()


@pytest.mark.parametrize("shape", SHAPES + TAUGHT)
def test_area_and_outline_equal_those_of_the_polygon(shape):
    x, y = outline(shape).T
    area = 0.5 * abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))
    length = np.hypot(x - np.roll(x, 1), y - np.roll(y, 1)).sum()
    assert unit_area(shape) == pytest.approx(area, rel=1e-4)
    assert unit_perimeter(shape) == pytest.approx(length, rel=1e-4)
    assert shape not in CORNERS or CORNERS[shape] == pytest.approx((NUMBER[shape], INNER[shape]))


@pytest.mark.parametrize("shape", SHAPES + TAUGHT)
@pytest.mark.parametrize(("radius", "centre"), [(7.0, (16.3, 14.2)), (12.0, (15.1, 17.6))])
def test_coverage_equals_that_of_the_polygon(shape, radius, centre):
    """Against 10 x 10 points of every pixel; a signed distance is less exact at corners."""
    cover = coverage(shape, np.array([radius]), np.array([centre]), 32)[0]
    points = (np.arange(320) + 0.5) / 10
    grid = np.stack(np.meshgrid(points, points), -1).reshape(-1, 2)
    inside = Path(outline(shape) * radius + centre).contains_points(grid)
    exact = inside.reshape(32, 10, 32, 10).mean((1, 3))
    assert np.abs(cover - exact).mean() < 0.01
    assert np.abs(cover - exact).max() < 0.55
    assert cover.sum() == pytest.approx(exact.sum(), rel=0.03)


def test_a_picture_has_its_caption_s_colours_except_at_the_outline():
    source = Shapes("train", 300)
    for image, caption in zip(source.images(np.arange(300)), source.captions, strict=True):
        _, _, colour, _, _, _, ground, _ = caption.split()
        assert tuple(image[:, 0, 0]) == BACKGROUNDS[ground]
        pixels = image.reshape(3, -1).T
        assert (pixels == COLOURS[colour]).all(1).sum() > 30
        ends = np.array([BACKGROUNDS[ground], COLOURS[colour]])
        assert ((pixels >= ends.min(0)) & (pixels <= ends.max(0))).all()


def found(source, count):
    """(N, 2) centres and (N,) areas of single objects, from the pixels' mixture of ground and paint."""
    centres, areas = [], []
    for image, caption in zip(source.images(np.arange(count)).astype(float), source.captions, strict=False):
        words = caption.split()
        ground, paint = np.array(BACKGROUNDS[words[6]]), np.array(COLOURS[words[2]])
        alpha = ((image.transpose(1, 2, 0) - ground) @ (paint - ground)) / ((paint - ground) @ (paint - ground))
        place = np.arange(len(alpha)) + 0.5
        centres.append((alpha.sum(0) @ place / alpha.sum(), alpha.sum(1) @ place / alpha.sum()))
        areas.append(alpha.sum() / unit_area(words[3]))
    return np.array(centres), np.array(areas)


def test_places_and_sizes_are_uniform_and_independent():
    source = Shapes("train", 2000)
    centres, areas = found(source, 2000)
    radius = np.sqrt(areas)
    off = centres - ONE.side / 2
    assert np.abs(off).max() < ONE.jitter + 0.2
    assert off.std(0) == pytest.approx([ONE.jitter / np.sqrt(3)] * 2, rel=0.05)
    assert np.abs(off.mean(0)).max() < 0.1
    rows = {size: np.array([caption.split()[1] == size for caption in source.captions]) for size in SIZES}
    for size, (low, high) in ONE.radius.items():
        drawn = radius[rows[size]]
        assert drawn.mean() == pytest.approx((low + high) / 2, rel=0.02)
        assert drawn.std() == pytest.approx((high - low) / np.sqrt(12), rel=0.25)
        together = np.corrcoef(np.column_stack([off[rows[size]], drawn]).T)
        assert np.abs(together[np.triu_indices(3, 1)]).max() < 0.12


def test_two_objects_have_independent_jitters():
    source = Shapes("train", 1500, pairs=True)
    rows = [i for i, caption in enumerate(source.captions) if " left of " in caption and "small" in caption.split()[1]]
    images = source.images(np.array(rows)).astype(float)
    chroma = images.max(1) - images.min(1)
    place, half = np.arange(TWO.side) + 0.5, TWO.side // 2
    tops = [(part.sum(2) @ place) / part.sum((1, 2)) for part in (chroma[:, :, :half], chroma[:, :, half:])]
    assert abs(np.corrcoef(*tops)[0, 1]) < 0.25
    assert min(top.std() for top in tops) > 0.5


def test_uniform_draws_fill_the_unit_interval():
    draws = uniform(3, np.arange(100_000), 1)
    assert 0 <= draws.min() < 1e-3
    assert 1 - 1e-3 < draws.max() < 1
    assert np.histogram(draws, 10, (0, 1))[0] == pytest.approx(10_000, rel=0.05)
    assert abs(np.corrcoef(draws, uniform(3, np.arange(100_000), 2))[0, 1]) < 0.02
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.02


@pytest.mark.parametrize("split", ["train", "unseen"])
def test_every_scene_is_equally_likely(split):
    drawn = np.unique(Shapes(split, 20_000).scene, return_counts=True)
    allowed = picture_numbers(False, unseen=split == "unseen")
    assert np.array_equal(drawn[0], allowed)
    assert drawn[1].std() < 1.3 * np.sqrt(20_000 / len(allowed))


def test_every_seed_split_and_kind_gives_another_data_set():
    kinds = [
        Shapes(split, count, seed, pairs)
        for split, count, seed, pairs in itertools.product(("train", "val"), (50, 60), (0, 1), (False, True))
    ]
    assert len({source.fingerprint for source in kinds}) == len(kinds)
    assert len({source.images(np.arange(50)).tobytes() for source in kinds}) == len(kinds) / 2, "count alone adds"
    with pytest.raises(ValueError, match="count=0: a split needs at least one picture"):
        Shapes("train", 0)


def test_the_fingerprint_belongs_to_these_pictures():
    """After a change of the drawing, increment the 1 in `shapes 1`, or old caches are used for new pictures."""
    for pairs, sums in ((False, [761716, 22322, 50990, 23240]), (True, [950204, 1699207, 60050, 1713722])):
        source = Shapes("train", 4, pairs=pairs)
        assert [int(image.sum(dtype=np.int64)) for image in source.images(np.arange(4))] == sums
