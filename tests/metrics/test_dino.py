"""DINOv2 in timm, tested with a small vision transformer with random weights."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from dit.metrics.dino import Dino, resampled

SMALL = "test_vit.r160_in1k"  # 10 x 10 patches of 16


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return timm.create_model(SMALL, pretrained=False, num_classes=0, global_pool="token").eval()


@pytest.fixture(scope="module")
def weights(net, tmp_path_factory):
    file = tmp_path_factory.mktemp("dino") / "vit.pt"
    torch.save(net.state_dict(), file)
    return str(file)


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (3, 3, 160, 160), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_features_are_the_class_token_after_the_last_norm(net, weights, images):
    extractor = Dino(SMALL, weights, size=160)
    with torch.inference_mode():
        tokens = net.forward_features((images / 255 - 0.5) / 0.5)
    torch.testing.assert_close(extractor(images)["pool"], tokens[:, 0])
    assert extractor.dims == {"pool": 64}
    assert "160" in extractor.fingerprint


def test_the_fingerprint_depends_on_size_and_weights(net, weights, images, tmp_path):
    small = Dino(SMALL, weights, size=64)
    assert small.net.pos_embed.shape == (1, 17, 64)
    assert small(images)["pool"].shape == (3, 64)
    assert small.fingerprint != Dino(SMALL, weights, size=160).fingerprint
    changed = {name: value + 1 for name, value in net.state_dict().items()}
    torch.save(changed, tmp_path / "other.pt")
    assert small.fingerprint != Dino(SMALL, str(tmp_path / "other.pt"), size=64).fingerprint
    with pytest.raises(ValueError, match=r"size=100 .* multiple of its patch size of 16 pixels"):
        Dino(SMALL, weights, size=100)


def test_positions_are_resampled_as_in_dinov2():
    """Inside the borders a linear ramp stays linear, up to the ripple of torch's cubic; it is sampled at positions with
    the scale (side + 0.1) / old. Without the 0.1 the last position would be off by 0.2."""
    old, side = 37, 16
    row = torch.arange(old, dtype=torch.float32)
    grid = torch.stack([row[:, None].expand(old, old), row.expand(old, old)], dim=-1).reshape(1, -1, 2)
    prefix = torch.full((1, 1, 2), 7.0)
    table = resampled(torch.cat([prefix, grid], dim=1), 1, side)
    assert torch.equal(table[:, :1], prefix)
    places = (torch.arange(side) + 0.5) * old / (side + 0.1) - 0.5
    inner = table[0, 1:].reshape(side, side, 2)[2:-2, 2:-2]
    torch.testing.assert_close(inner[..., 0], places[2:-2, None].expand(12, 12), rtol=0, atol=0.06)
    torch.testing.assert_close(inner[..., 1], places[None, 2:-2].expand(12, 12), rtol=0, atol=0.06)


def test_positions_are_resampled_by_a_cubic_without_antialiasing():
    """An impulse: a cubic undershoots below zero next to it, and without antialiasing few positions depend on it."""
    old, side = 40, 10
    grid = torch.zeros(old, old, 1)
    grid[21, 21] = 1
    table = resampled(torch.cat([torch.zeros(1, 1, 1), grid.reshape(1, -1, 1)], dim=1), 1, side)
    assert 0 < (table != 0).sum() <= 1
    wide = resampled(torch.cat([torch.zeros(1, 1, 1), grid.reshape(1, -1, 1)], dim=1), 1, 2 * old)
    assert wide.max() > 0.5
    assert wide.min() < -0.05


def test_larger_pictures_are_resized_with_antialiasing(weights):
    images = torch.randint(0, 256, (2, 3, 512, 512), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    small = [Image.fromarray(x.permute(1, 2, 0).numpy()).resize((64, 64), Image.Resampling.BICUBIC) for x in images]
    extractor = Dino(SMALL, weights, size=64)
    ours, theirs = (extractor(x)["pool"] for x in (images, torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2)))
    assert float((ours - theirs).norm() / theirs.norm()) < 0.02
    assert not any(p.requires_grad for p in extractor.parameters())


@pytest.mark.parametrize(("model", "weights", "message"), [
    (SMALL, "none.pt", "weights 'none.pt' cannot be loaded"), ("vit_of_mars", None, "timm has no weights of this name"),
    (SMALL, None, "it is incomplete in the local cache"),
])  # fmt: skip
def test_missing_weights_give_a_one_line_error(model, weights, message):
    with pytest.raises(ValueError, match=message) as error:
        Dino(model, weights)
    assert "\n" not in str(error.value)


def test_weights_of_another_network_give_an_error(tmp_path):
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="cannot be loaded"):
        Dino(SMALL, str(tmp_path / "other.pt"))
    (tmp_path / "evil.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match="cannot be loaded"):
        Dino(SMALL, str(tmp_path / "evil.pt"))
