"""What names a network: its weights, their names and types, and its settings."""

import pytest
import torch
from torch import nn

from dit.tensors import fingerprint


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_fingerprint_changes_with_any_weight_name_or_setting(dtype):
    def net(**changes):
        made = nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.Linear(3, 2)})
        for i, p in enumerate(made.parameters()):
            nn.init.constant_(p, i + 1.0)
        for name, value in changes.items():
            made[name].bias.data[1] = value
        return made.to(dtype)

    others = [fingerprint(net(a=7), 1), fingerprint(net(b=7), 1), fingerprint(net(), 2), fingerprint(net()["a"], 1)]
    assert fingerprint(net(), 1) == fingerprint(net(), 1)
    assert len({fingerprint(net(), 1), *others}) == 5
