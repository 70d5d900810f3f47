"""Places: rotary turns depend on how far two places lie apart, and leave the tokens before the picture alone."""

import pytest
import torch

from dit.layers.embeddings import axis_widths, rotate
from dit.layers.patches import Patches

HEAD = 8


def test_a_turn_keeps_lengths_and_what_two_places_say_depends_on_their_distance_alone():
    patches, x = Patches(4, 2, 16, position="rotary"), torch.zeros(1, 4, 8, 12)  # 4 x 6 patches
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(HEAD, generator=draw).expand(24, -1) for _ in range(2))
    turn = patches.rotary(x, HEAD)
    turned_q, turned_k = rotate(q, turn), rotate(k, turn)
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm(dim=-1))
    scores = (turned_q @ turned_k.T).view(4, 6, 4, 6)
    torch.testing.assert_close(scores[0, 0, :3, :5], scores[1, 1, 1:, 1:])
    assert scores[0, 0].std() > 0.01


@pytest.mark.parametrize("registers", [0, 3])
def test_registers_and_tokens_before_the_picture_are_not_turned(registers):
    patches, x = Patches(4, 2, 16, position="rotary", registers=registers), torch.zeros(1, 4, 8, 8)
    turn = patches.rotary(x, HEAD, before=2)
    tokens = torch.randn(2 + registers + 16, HEAD)
    turned = rotate(tokens, turn)
    assert torch.equal(turned[: 2 + registers], tokens[: 2 + registers])
    assert (turned[2 + registers + 1 :] - tokens[2 + registers + 1 :]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("axes", [(4, 6), (3, 5, 8), (4, 6, 8), (4, 6, 6, 0)])
def test_axes_that_do_not_fill_a_head_with_pairs_are_refused(axes):
    assert axis_widths(16, None, (4, 6, 6)) == axis_widths(16, (4, 6, 6), (2, 2, 12)) == (4, 6, 6)
    with pytest.raises(
        ValueError, match="must be 3 even numbers that add up to the width of a head, width / heads = 16"
    ):
        axis_widths(16, axes, (4, 6, 6))
