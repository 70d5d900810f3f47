"""Which parameters an optimizer takes, in every backbone."""

import re

import pytest

from dit.training.optimizer import muon

from ..backbones.test_backbones import OWN

BLOCK = r"(blocks|single_blocks|text_blocks|encoder|decoder)\.\d+\."
PLACES = {"attention", "cross", "mlp", "modulation", "alone", "image", "text", "last_text", "out"}


@pytest.mark.parametrize("make", OWN.values(), ids=OWN)
def test_muon_takes_the_matrices_of_blocks_and_no_projection_at_either_end(make):
    named = dict(make().named_parameters())
    taken = {id(p) for p in muon(named.items(), 0.1, (0.9, 0.95), 0.0, 0.1).parts[0].param_groups[0]["params"]}
    names = {name for name, p in named.items() if id(p) in taken}
    assert all(re.match(BLOCK, name) and named[name].dim() == 2 for name in names)
    left = {name for name, p in named.items() if p.dim() == 2 and name not in names}
    assert all("table" in name or "registers" in name for name in left if re.match(BLOCK, name) or name == "registers")
    assert {re.split(r"\.\d+\.", name)[1].split(".")[0] for name in names} <= PLACES
    assert any("mlp" in name for name in names)
    ends = {
        "patches",
        "time",
        "text_in",
        "pooled",
        "label",
        "head",
        "out",
        "text",
        "size",
        "ratio",
        "modulation",
        "guidance",
    }
    assert not {name.split(".")[0] for name in names} & ends
