"""Import of weights: how many tensors are in memory at a time, and their dtype."""

import weakref
from collections.abc import Mapping

import pytest
import torch

from dit.backbones.dit import DiT
from dit.checkpoints.dit import from_diffusers, to_diffusers, to_original
from dit.checkpoints.foreign import initialize, write_folder

DEPTH = 3
SIZES = {"channels": 4, "classes": 10, "width": 48, "depth": DEPTH, "heads": 4, "time_shift": 1.0}


def random_net():
    torch.manual_seed(0)
    net = DiT(**SIZES)
    for p in net.parameters():
        torch.nn.init.normal_(p)
    return net


class Lent(Mapping):
    """A state dict that creates each tensor on access and counts how many exist at a time."""

    def __init__(self, state):
        self.state, self.alive, self.most = state, weakref.WeakSet(), 0

    def __getitem__(self, name):
        tensor = self.state[name].double()
        self.alive.add(tensor)
        self.most = max(self.most, len(self.alive))
        return tensor

    def __contains__(self, name):
        return name in self.state

    def __iter__(self):
        return iter(self.state)

    def __len__(self):
        return len(self.state)


def test_the_sources_of_only_one_tensor_are_in_memory():
    """Queries, keys and values while they are concatenated; one copy of a shared tensor besides the first."""
    net = random_net()
    config, state = to_diffusers(net, 8)
    lent = Lent(state)
    with torch.device("meta"):
        loaded = from_diffusers(config, lent)
    assert lent.most <= 4
    for name, value in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_network_on_the_meta_device_gets_all_weights_in_float32(tmp_path, dtype):
    net = random_net().to(dtype)
    write_folder(net, tmp_path, 8)
    with torch.device("meta"):
        empty = DiT(**SIZES)
    initialize(empty, tmp_path)
    for name, value in net.state_dict().items():
        got = empty.state_dict()[name]
        assert got.device.type == "cpu"
        assert got.dtype == torch.float32
        assert got.untyped_storage().nbytes() == 4 * got.numel()  # none keeps a file or a larger tensor in memory
        assert torch.equal(got, value.float()), name


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.model."])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_weights_behind_the_prefixes_of_wrappers_are_read(prefix, suffix, tmp_path):
    from safetensors.torch import save_file

    net = DiT(4, 3, width=384, depth=1, heads=6)
    state = {prefix + name: value.contiguous() for name, value in to_original(net, 8).items()}
    file = tmp_path / f"weights.{suffix}"
    if suffix == "pt":
        torch.save({"ema": state}, file)
    else:
        save_file(state, file)
    other = DiT(4, 3, width=384, depth=1, heads=6)
    initialize(other, file)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_a_file_with_a_numpy_number_is_refused_with_a_remedy(tmp_path):
    import numpy as np

    torch.save({"ema": {"a": torch.zeros(1)}, "best": np.float64(1.5)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"more than tensors.*numpy.*torch\.save\(model\.state_dict\(\), FILE\)"):
        initialize(DiT(4, 3, width=384, depth=1, heads=6), tmp_path / "w.pt")
