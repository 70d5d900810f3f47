"""The mark in the initial noise: found in a model that can be inverted, and uniform p-values without it."""

from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from dit.diffusion.path import Linear
from dit.diffusion.prediction import Flow
from dit.diffusion.time import UniformTime
from dit.encoders.autoencoder import Identity
from dit.encoders.text import WordEncoder
from dit.generation import noise_mark
from dit.generation.mark_card import p_values
from dit.generation.marks import Origin
from dit.generation.noise_mark import NoiseMark
from dit.pipeline import Pipeline
from dit.types import to_pixels


class Still(torch.nn.Module):
    """A network whose velocity is zero: a picture is its own noise, up to the bounds of pixels."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, time, condition):
        return x * self.weight


def pipeline():
    return Pipeline(Still(), Linear(), Flow(), WordEncoder(["star"], width=4), Identity(), (3, 8, 8))


def pictures_of(mark, seeds):
    """Pictures (N, 8, 8, 3) uint8 as `Still` makes them."""
    noise = Linear().sampling_noise(mark.seeds(seeds), (3, 8, 8)).start()
    return to_pixels(noise.clamp(-1, 1)).permute(0, 2, 3, 1).numpy()


def marks(tmp_path, count):
    for number in range(count):
        (tmp_path / f"key_{number}").write_bytes(bytes([number]) * 32)
    return [NoiseMark(str(tmp_path / f"key_{number}")) for number in range(count)]


def test_a_picture_is_found_by_its_seed_also_mirrored(tmp_path):
    mark, other = marks(tmp_path, 2)
    [picture] = pictures_of(mark, [3])
    right, range_ = Origin(pipeline(), UniformTime(), "star", [3]), Origin(pipeline(), UniformTime(), None, range(10))
    assert mark.detect(picture, None, right).p_value < 1e-9
    found = mark.detect(picture[:, ::-1], None, range_)
    assert (found.p_value < 1e-9, found.flip, found.tests) == (True, "left-right", 40)
    assert mark.detect(picture, None, Origin(pipeline(), UniformTime(), None, [4])).p_value > 1e-4
    assert other.detect(picture, None, right).p_value > 1e-4
    assert mark.seeds([3]) != other.seeds([3]) != [3]


def test_a_card_has_the_share_that_is_found_without_the_prompt_among_many_seeds(tmp_path):
    mark, other = marks(tmp_path, 2)
    [picture] = pictures_of(mark, [3])
    origin = Origin(pipeline(), UniformTime(), "star", [3])
    found = p_values(mark, picture, origin)
    assert found["as delivered"] < found["one of 100 seeds, without the prompt"] < 1e-6
    assert p_values(other, picture, origin)["one of 100 seeds, without the prompt"] > 1e-4


def test_p_values_without_the_mark_are_uniform(tmp_path, monkeypatch):
    """Of pictures of another key, one at a time and with a range of seeds."""
    made, *others = marks(tmp_path, 21)
    own = noise_mark.recovered
    inverted = cache(lambda content: own(origins[0], np.frombuffer(content, np.uint8).reshape(-1, 8, 8, 3)))
    monkeypatch.setattr(noise_mark, "recovered", lambda origin, pictures: inverted(pictures.tobytes()))
    monkeypatch.setattr(noise_mark, "STEPS", 2)
    model, pictures = pipeline(), pictures_of(made, range(10))
    origins = [Origin(model, UniformTime(), None, seeds) for seeds in ([5], range(6))]
    for origin in origins:
        found = [mark.detect(picture, None, origin).p_value for picture in pictures for mark in others]
        assert kstest(found, "uniform").pvalue > 0.001


def test_without_a_model_or_seeds_the_test_is_refused(tmp_path):
    [mark] = marks(tmp_path, 1)
    for origin in (None, Origin(pipeline(), UniformTime(), None, [])):
        with pytest.raises(ValueError, match="is tested through the model: say ckpt=RUN and the seeds to try"):
            mark.detect(np.zeros((8, 8, 3), np.uint8), None, origin)
