"""What PixArt alone promises; the laws of every backbone are in test_backbones.py."""

from dataclasses import replace

import pytest
import torch

from dit.backbones.pixart import PixArt
from dit.layers.embeddings import grid_sinusoid
from dit.types import Condition

from .test_backbones import SMALL, inputs, woken


def test_a_pooled_text_may_be_given_and_is_not_read():
    x, time, condition = inputs()
    net = woken(lambda: PixArt(token_dim=12, pooled_dim=10, **SMALL))
    assert torch.equal(net(x, time, condition), net(x, time, replace(condition, pooled=None)))


def test_no_block_hears_the_text_at_the_start():
    x, time, condition = inputs()
    net = PixArt(token_dim=12, **SMALL)
    torch.nn.init.normal_(net.out.weight)
    plain, other = net(x, time, condition), net(x, time, replace(condition, tokens=2 * condition.tokens))
    assert plain.std() > 0.1
    assert torch.equal(plain, other)


def test_every_picture_spans_the_base_both_ways():
    patches = PixArt(token_dim=12, base=6, **SMALL).patches
    places = grid_sinusoid(3, 2, 48, scale=(2.0, 3.0))
    torch.nn.init.zeros_(patches.project.weight)
    torch.testing.assert_close(patches(torch.zeros(1, 4, 6, 4))[0], places)
    assert (grid_sinusoid(3, 2, 48)[1:] - places[1:]).abs().amax(dim=1).min() > 0.1


@pytest.mark.parametrize(("pixels_per_cell", "least", "most"), [(8, 1e-3, 1e9), (None, 0, 0)])
def test_micro_conditions_tell_the_size_and_the_shape(pixels_per_cell, least, most):
    net = woken(lambda: PixArt(token_dim=12, pixels_per_cell=pixels_per_cell, **SMALL))
    time = torch.tensor([500.0])
    vectors = [
        net.vector(torch.zeros(1, 4, *sides), time, Condition()) for sides in ((8, 8), (16, 16), (8, 16), (16, 8))
    ]
    for i, vector in enumerate(vectors):
        for other in vectors[:i]:
            assert least <= (vector - other).abs().max() <= most
