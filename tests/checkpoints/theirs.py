"""Inputs and checks of networks that are compared with the classes of diffusers."""

import torch

from dit.types import Condition


def with_varied_norms(net):
    """The network with a different value for each weight of a norm, so that none can take the place of another."""
    for name, p in net.named_parameters():
        if "norm_" in name and p.dim() == 1 and not name.endswith("bias"):
            torch.nn.init.normal_(p, 1.0, 0.3)
    return net


def texts(config, rows, seed=1):
    """Conditions with padding, which these networks read like any other token; pooled text if the class has a size."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randn(rows, 7, config["joint_attention_dim"], generator=draw)
    pooled = config.get("pooled_projection_dim")
    pooled = None if pooled is None else torch.randn(rows, pooled, generator=draw)
    return Condition(tokens=tokens, mask=(torch.arange(7) < 5).expand(rows, 7), pooled=pooled)


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def assert_round_trip_is_exact(other, config, from_diffusers, to_diffusers, sample_size=8):
    """Config and state dict of diffusers come back as they were."""
    state = other.state_dict()
    exported, again = to_diffusers(from_diffusers(other.config, state), sample_size)
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in exported.items() if k != "_class_name"} == config
    assert again.keys() == state.keys()
    assert all(torch.equal(again[k], state[k]) for k in state)
