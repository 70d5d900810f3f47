"""What a model gives to a delivery."""

from types import SimpleNamespace

import pytest
import torch

from dit.generation.model import Model
from dit.generation.work import Job


class Broken:
    """Gives a picture that is not finite for every odd seed."""

    def shape_of(self, size):
        return (4, 4, 4)

    def __call__(self, texts, seeds, recipe, count, edit, shape):
        images = torch.zeros(len(seeds), 3, 8, 8)
        images[[place for place, seed in enumerate(seeds) if seed % 2], 0, 0, 0] = torch.nan
        return SimpleNamespace(images=images, nfe=3.0)


def test_pictures_that_are_not_finite_are_an_error_with_their_seeds():
    jobs = [Job(seed, f"seed_{seed}", 0, None, "a star", seed) for seed in range(4)]
    model = Model(Broken(), None, None, None, {})
    pixels, calls = model.sample(jobs[::2])
    assert (pixels.shape, calls) == ((2, 3, 8, 8), 3.0)
    with pytest.raises(ValueError, match=r"2 of 4 pictures are not finite, those of the seeds 1, 3; try precision=32"):
        model.sample(jobs)
