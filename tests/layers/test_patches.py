"""Patches that reach into their neighbours."""

import pytest
import torch

from dit.layers.patches import Patches


@pytest.mark.parametrize("overlap", [0, 1, 2])
def test_a_patch_gives_to_the_pixels_that_it_reads(overlap):
    """What a token adds to the picture lies where its patch lies, with `overlap` pixels more on every side."""
    patches, like = Patches(3, 4, 8, overlap=overlap), torch.zeros(1, 3, 12, 16)
    tokens = torch.zeros(1, 12, patches.side**2 * 3)
    tokens[0, 5] = 1  # second row, second column
    touched = patches.picture(tokens, like)[0].ne(0).all(0)
    wanted = torch.zeros(12, 16, dtype=torch.bool)
    wanted[4 - overlap : 8 + overlap, 4 - overlap : 8 + overlap] = True
    assert torch.equal(touched, wanted)
    x = torch.randn(1, 3, 12, 16)
    changed = patches(x) - patches(x + touched)
    assert changed[0, 5].abs().max() > 1e-4
    if not overlap:
        assert changed[0, torch.arange(12) != 5].abs().max() == 0


def test_overlapping_patches_are_added_up():
    """Tokens of ones give each pixel the number of patches that reach it."""
    patches, like = Patches(1, 4, 8, overlap=2), torch.zeros(1, 1, 12, 12)
    counts = patches.picture(torch.ones(1, 9, 64), like)[0, 0]
    assert counts[5, 5] == 4  # within, every pixel lies in two patches either way
    assert counts[0, 0] == 1
    assert counts[0, 5] == 2


@pytest.mark.parametrize("overlap", [0, 1])
def test_channels_stay_apart(overlap):
    """The values of a token are its pixels row by row, the channels of each together, with and without an overlap."""
    patches, like = Patches(2, 2, 8, overlap=overlap), torch.zeros(1, 2, 4, 4)
    tokens = torch.zeros(1, 4, patches.side**2, 2)
    tokens[..., 1] = 1
    made = patches.picture(tokens.flatten(2), like)
    assert made[0, 0].abs().max() == 0
    assert made[0, 1].min() > 0


def test_a_negative_overlap_is_refused():
    with pytest.raises(ValueError, match="overlap=-1"):
        Patches(3, 4, 8, overlap=-1)
