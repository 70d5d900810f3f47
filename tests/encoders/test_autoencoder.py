import json
import re
import shutil
import time

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from dit.data.shapes import Shapes
from dit.data.shapes_checker import ShapesChecker
from dit.encoders.autoencoder import Identity, PretrainedAutoencoder
from dit.encoders.autoencoder_weights import WEIGHTS
from dit.types import from_pixels, to_pixels

from ..conftest import composed
from .small import SMALL, saved, small


def test_pixels_survive_the_round_trip():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(to_pixels(from_pixels(pixels)), pixels)
    assert from_pixels(pixels).min() == -1
    assert from_pixels(pixels).max() == 1
    assert to_pixels(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]


def test_identity_is_the_identity():
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    assert torch.equal(Identity().decode(Identity().encode(images)), images)


@pytest.fixture(scope="module")
def shipped():
    return PretrainedAutoencoder("shapes_autoencoder")


def pictures(count, pairs=False):
    source = Shapes("val", count, pairs=pairs)
    return torch.from_numpy(source.images(np.arange(count))), source.captions


def test_the_shapes_checker_reads_reconstructions_of_the_shipped_autoencoder(shipped):
    images, captions = pictures(300)
    again = to_pixels(shipped.decode(shipped.encode(from_pixels(images))))
    right = np.all(list(ShapesChecker()(again, captions).values()), axis=0)
    assert right.mean() >= 0.99


def test_its_latents_have_zero_mean_and_unit_variance(shipped):
    latents = shipped.encode(from_pixels(pictures(200)[0]))
    assert latents.shape == (200, shipped.channels, 32 // shipped.factor, 32 // shipped.factor)
    assert abs(latents.mean()) < 0.1
    assert latents.std() == pytest.approx(1, abs=0.1)


# Every class of network, small and random, from a folder.

KINDS = sorted(SMALL)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("autoencoders")
    return {name: saved(root, name) for name in SMALL}


def noise(count, height=32, width=32):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def assert_near(actual, expected):
    """Asserts equality within 1e-6 of the largest value: float32 sums in another order."""
    torch.testing.assert_close(actual, expected, atol=1e-6 * expected.abs().max().item(), rtol=0)


def raw_of(net, images):
    """Returns the raw latents from the class of diffusers."""
    output = net.encode(images)
    return {"AutoencoderKL": lambda: output.latent_dist.mode(), "AutoencoderTiny": lambda: output.latents,
            "AutoencoderDC": lambda: output.latent}[type(net).__name__]()  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_latents_and_pictures_are_those_of_diffusers(folders, name):
    ours, net, images = PretrainedAutoencoder(str(folders[name])), small(name), noise(3)
    raw = raw_of(net, images)
    shift, scale = net.config.get("shift_factor") or 0, net.config.scaling_factor
    z = ours.encode(images)
    assert_near(z, (raw - shift) * scale)
    assert_near(z / scale + shift, raw)
    assert_near(ours.decode(z), net.decode(z / scale + shift).sample)
    assert z.shape == (3, ours.channels, 32 // ours.factor, 32 // ours.factor)
    assert z.dtype == ours.decode(z).dtype == torch.float32
    assert not z.is_inference()
    assert not any(p.requires_grad for p in ours.net.parameters())


@pytest.mark.parametrize("name", KINDS)
def test_the_posterior_is_that_of_diffusers_if_the_class_has_one(folders, name):
    ours, net, images = PretrainedAutoencoder(str(folders[name]), slice_size=2), small(name), noise(3)
    if not name.startswith("kl"):
        assert ours.posterior is None
        return
    posterior = net.encode(images).latent_dist
    mean, std = ours.posterior(images)
    assert_near(mean, ours.encode(images))
    assert_near(std, posterior.std * net.config.scaling_factor)
    drawn = posterior.sample(torch.Generator().manual_seed(3))
    by_hand = mean + std * torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    assert_near(by_hand, (drawn - (net.config.shift_factor or 0)) * net.config.scaling_factor)
    assert not mean.is_inference()


@pytest.mark.parametrize("name", KINDS)
def test_the_slice_size_does_not_change_the_result(folders, name):
    whole, sliced = (PretrainedAutoencoder(str(folders[name]), slice_size=size) for size in (7, 3))
    z = whole.encode(noise(7))
    assert_near(sliced.encode(noise(7)), z)
    assert_near(sliced.decode(z), whole.decode(z))
    assert sliced.fingerprint == whole.fingerprint


def test_no_forward_pass_exceeds_the_slice_size(folders):
    ours = PretrainedAutoencoder(str(folders["kl_4"]), slice_size=3)
    sizes = []
    ours.net.encoder.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    ours.net.decoder.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    ours.decode(ours.encode(noise(7)))
    assert sizes == [3, 3, 1, 3, 3, 1]


@pytest.mark.parametrize("name", KINDS)
def test_large_pictures_are_processed_in_tiles(folders, name):
    """Inputs are no larger than a tile; tiles are placed correctly; a picture of one tile is not split."""
    tiled, whole = PretrainedAutoencoder(str(folders[name]), tile=16), PretrainedAutoencoder(str(folders[name]))
    sizes = []
    tiled.net.encoder.register_forward_pre_hook(lambda _, args: sizes.append(max(args[0].shape[2:])))
    tiled.net.decoder.register_forward_pre_hook(lambda _, args: sizes.append(tiled.factor * max(args[0].shape[2:])))
    images = noise(2, 48, 32)
    z, expected = tiled.encode(images), whole.encode(images)
    again, of_whole = tiled.decode(expected), whole.decode(expected)
    assert max(sizes) == 16
    assert (z.shape, again.shape) == (expected.shape, images.shape)
    for ours, theirs in ((z, expected), (again, of_whole)):  # misplaced tiles would be uncorrelated
        assert torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1] > 0.5
    assert_near(tiled.encode(noise(2, 16, 16)), whole.encode(noise(2, 16, 16)))
    assert tiled.fingerprint != whole.fingerprint


@pytest.mark.parametrize("sides", [(16, 32), (32, 16)], ids=str)
def test_a_picture_with_one_side_longer_than_a_tile_is_tiled(folders, sides):
    tiled, sizes = PretrainedAutoencoder(str(folders["kl_4"]), tile=16), []
    tiled.net.encoder.register_forward_pre_hook(lambda _, args: sizes.append(max(args[0].shape[2:])))
    tiled.net.decoder.register_forward_pre_hook(lambda _, args: sizes.append(tiled.factor * max(args[0].shape[2:])))
    assert tiled.decode(tiled.encode(noise(2, *sides))).shape == (2, 3, *sides)
    assert max(sizes) == 16
    assert len(sizes) == 2 * 6, "a quarter overlaps: tiles start at 0, 12 and 24 of 32, and at 0 and 12 of 16"


def test_statistics_move_with_the_network(folders):
    ours = PretrainedAutoencoder(str(folders["kl_16"]))
    assert ours.to("meta") is ours
    assert {ours.shift.device.type, ours.scale.device.type, ours.net.device.type} == {"meta"}


@pytest.mark.parametrize("name", KINDS)
def test_bfloat16_is_near_float32(folders, name):
    full, half = PretrainedAutoencoder(str(folders[name])), PretrainedAutoencoder(str(folders[name]), dtype="bfloat16")
    z, images = full.encode(noise(2)), noise(2)
    assert half.net.dtype == torch.bfloat16
    assert half.encode(images).dtype == half.decode(z).dtype == torch.float32
    for rough, fine in ((half.encode(images), z), (half.decode(z), full.decode(z))):
        assert 0 < (rough - fine).square().mean().sqrt() < 0.03 * fine.std()
    assert half.fingerprint != full.fingerprint


MEASURED = [
    {"shift": 0.25, "scale": 3.0},
    {"mean": 0.25, "std": 1 / 3},
    {"mean": [0.25] * 4, "scale": [3.0] * 4},
]


@pytest.mark.parametrize("given", MEASURED, ids=str)
def test_measured_statistics_replace_those_of_the_config(folders, given):
    ours, net = PretrainedAutoencoder(str(folders["kl_4"]), **given), small("kl_4")
    raw = raw_of(net, noise(2))
    assert_near(ours.encode(noise(2)), (raw - 0.25) * 3)
    z = ours.encode(noise(2))
    assert_near(z / 3 + 0.25, raw)
    assert_near(ours.decode(z), net.decode(z / 3 + 0.25).sample)
    assert ours.fingerprint != PretrainedAutoencoder(str(folders["kl_4"])).fingerprint


def test_statistics_are_those_of_each_channel(folders):
    ours, raw = (
        PretrainedAutoencoder(str(folders["kl_4"]), mean=[0, 1, 2, 3], std=[1, 2, 4, 8]),
        raw_of(small("kl_4"), noise(2)),
    )
    expected = (raw - torch.arange(4.0)[:, None, None]) / torch.tensor([1.0, 2, 4, 8])[:, None, None]
    assert_near(ours.encode(noise(2)), expected)


def test_means_and_deviations_of_a_config_are_used_as_diffusers_pipelines_do(tmp_path):
    """StableDiffusionXLPipeline: raw = z * std / scaling_factor + mean."""
    changes = {"latents_mean": [0.0, 1.0, 2.0, 3.0], "latents_std": [1.0, 2.0, 4.0, 8.0], "scaling_factor": 0.5}
    net = small("kl_4", **changes)
    ours = PretrainedAutoencoder(str(saved(tmp_path, "kl_4", **changes)))
    mean, std = (torch.tensor(changes[f"latents_{what}"])[:, None, None] for what in ("mean", "std"))
    z = ours.encode(noise(2))
    assert_near(z * std / 0.5 + mean, raw_of(net, noise(2)))


def test_the_fingerprint_follows_the_weights_and_the_config(tmp_path, folders):
    prints = [
        PretrainedAutoencoder(str(folders["kl_4"])).fingerprint,
        PretrainedAutoencoder(str(folders["kl_4"])).fingerprint,
    ]
    net = small("kl_4")
    net.decoder.conv_out.bias[0] += 1e-3
    net.save_pretrained(tmp_path / "bias")
    saved(tmp_path, "kl_4", act_fn="relu")
    prints += [PretrainedAutoencoder(str(tmp_path / name)).fingerprint for name in ("bias", "kl_4")]
    assert len(set(prints)) == 3


# Sources of weights.


def bare(folder, place, name="weights.safetensors"):
    """Copies the weights to a folder without their config."""
    place.mkdir(exist_ok=True)
    return shutil.copy(folder / WEIGHTS, place / name)


def config_of(name):
    return {"_class_name": SMALL[name][0], **SMALL[name][1]}


@pytest.mark.parametrize("name", KINDS)
def test_a_single_file_equals_its_folder(folders, tmp_path, name):
    folder = PretrainedAutoencoder(str(folders[name]))
    beside = PretrainedAutoencoder(str(folders[name] / WEIGHTS))
    alone = PretrainedAutoencoder(bare(folders[name], tmp_path), config=config_of(name))
    for one in (beside, alone):
        assert torch.equal(one.encode(noise(2)), folder.encode(noise(2)))
        assert torch.equal(one.decode(folder.encode(noise(2))), folder.decode(folder.encode(noise(2))))
    assert beside.fingerprint == folder.fingerprint


ORIGINAL = [  # keys of a two-stage AutoencoderKL in diffusers -> keys of the original code
    (r"down_blocks\.(\d)\.resnets", r"down.\1.block"), (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.0\.", "up.1."), (r"up_blocks\.1\.", "up.0."), (r"(up\.\d)\.resnets", r"\1.block"),
    (r"upsamplers\.0", "upsample"), (r"mid_block\.resnets\.0", "mid.block_1"), (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"), (r"mid_block\.attentions\.0\.to_", "mid.attn_1."),
    (r"conv_shortcut", "nin_shortcut"), (r"conv_norm_out", "norm_out"),
]  # fmt: skip


def original_key(key):
    for new, old in ORIGINAL:
        key = re.sub(new, old, key)
    return key


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae."])
@pytest.mark.parametrize("name", ["kl_4", "kl_16"])
def test_original_files_are_read_as_diffusers_reads_them(folders, tmp_path, name, prefix):
    """As a separate file (SDXL, FLUX), or inside the file of a whole model (SD, SD3)."""
    from diffusers import AutoencoderKL

    state = {prefix + original_key(key): value for key, value in load_file(folders[name] / WEIGHTS).items()}
    for key in [key for key in state if ".attn_1." in key and key.endswith("weight") and "norm" not in key]:
        state[key] = state[key][:, :, None, None].clone()  # originally 1 x 1 convolutions
    assert any(f"{prefix}encoder.mid.attn_1.q.weight" == key for key in state)
    if prefix:
        state["model.diffusion_model.out.0.weight"] = torch.zeros(3)
    save_file(state, tmp_path / "original.safetensors")
    theirs = AutoencoderKL.from_single_file(str(tmp_path / "original.safetensors"), config=str(folders[name]))
    ours = PretrainedAutoencoder(str(tmp_path / "original.safetensors"), config=config_of(name))
    torch.testing.assert_close(ours.net.state_dict(), theirs.state_dict(), atol=0, rtol=0)
    assert torch.equal(ours.encode(noise(2)), PretrainedAutoencoder(str(folders[name])).encode(noise(2)))


def test_folders_of_old_diffusers_versions_are_read(folders, tmp_path):
    """The attention layers had other keys, as in the published autoencoders of Stable Diffusion 1."""
    shutil.copytree(folders["kl_4"], tmp_path / "old")
    words = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(folders["kl_4"] / WEIGHTS)
    old = {}
    for key, value in state.items():
        for new, before in words.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        old[key] = value
    assert old.keys() != state.keys()
    save_file(old, tmp_path / "old" / WEIGHTS)
    assert (
        PretrainedAutoencoder(str(tmp_path / "old")).fingerprint
        == PretrainedAutoencoder(str(folders["kl_4"])).fingerprint
    )


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_the_configs_in_yaml_are_those_of_the_published_networks(name):
    """Parameters as published: 83.65 M of Stable Diffusion, 83.82 M of SD3 and FLUX."""
    from diffusers import AutoencoderKL

    node = composed("train", [f"autoencoder={name}"]).autoencoder
    with torch.device("meta"):
        net = AutoencoderKL.from_config(OmegaConf.to_container(node.config))
    assert sum(p.numel() for p in net.parameters()) == {4: 83_653_863, 16: 83_819_683}[net.config.latent_channels]


@pytest.fixture
def hub(tmp_path, monkeypatch, folders):
    """A local cache of the hub with one autoencoder, and a hub that does not respond."""
    from huggingface_hub import constants

    snapshot = tmp_path / "models--someone--something" / "snapshots" / "0123"
    shutil.copytree(folders["kl_16"], snapshot / "vae")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


def test_a_name_on_the_hub_is_found_in_its_cache(hub, folders):
    ours = PretrainedAutoencoder("someone/something/vae")
    assert ours.fingerprint == PretrainedAutoencoder(str(folders["kl_16"])).fingerprint


def test_a_name_missing_from_the_cache_fails_at_once(hub):
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"someone/else.*local cache.*does not answer.*shapes_autoencoder") as error:
        PretrainedAutoencoder("someone/else/vae")
    assert len(str(error.value).splitlines()) == 1
    assert time.perf_counter() - start < 5


# Error messages have one line.


def test_the_error_for_a_missing_folder_lists_the_shipped_ones():
    with pytest.raises(ValueError, match=r"/no/such/folder: no such folder.*shapes_autoencoder"):
        PretrainedAutoencoder("/no/such/folder")


def with_config(folder, place, **changes):
    shutil.copytree(folder, place)
    config = json.loads((place / "config.json").read_text()) | changes
    (place / "config.json").write_text(json.dumps(config))
    return place


def faulty(what, folders, place):
    kl = folders["kl_4"]
    if what == "class":
        return with_config(kl, place, _class_name="UNet2DConditionModel")
    if what == "blocks":
        return with_config(kl, place, down_block_types=["NoBlock", "NoBlock"])
    if what == "grey":
        return saved(place, "kl_4", in_channels=1, out_channels=1)
    if what == "shapes":
        return with_config(kl, place, latent_channels=5)
    if what == "keys":
        return with_config(kl, place, use_quant_conv=False)
    if what == "deeper":
        return with_config(kl, place, layers_per_block=2)
    if what == "pickle":
        torch.save({}, place.with_suffix(".pt"))
        return place.with_suffix(".pt")
    if what == "alone":
        return bare(kl, place)
    shutil.copytree(kl, place)
    if what == "weights":
        (place / WEIGHTS).unlink()
    elif what == "config":
        (place / "config.json").unlink()
    elif what == "torn":
        (place / WEIGHTS).write_bytes((kl / WEIGHTS).read_bytes()[:1000])
    else:
        (place / "config.json").write_text("{")
    return place


@pytest.mark.parametrize(("what", "parts"), [
    ("class", ["UNet2DConditionModel", "AutoencoderKL, AutoencoderTiny, AutoencoderDC"]),
    ("blocks", ["does not describe a valid AutoencoderKL", "NoBlock"]),
    ("grey", ["1 channels", "have 3"]),
    ("shapes", ["of another shape: decoder.conv_in.weight (16, 4, 3, 3) for (16, 5, 3, 3)", "does not fit its AutoencoderKL"]),
    ("keys", ["2 unknown: quant_conv.bias, quant_conv.weight"]),
    ("deeper", ["missing: ", ", ..."]),
    ("pickle", [".safetensors"]),
    ("alone", ["config.json", "autoencoder=sd"]),
    ("weights", ["lacks diffusion_pytorch_model.safetensors"]),
    ("config", ["no config.json"]),
    ("torn", ["cannot be read as safetensors"]),
    ("garbled", ["config.json is not JSON"]),
])  # fmt: skip
def test_a_broken_folder_gives_a_one_line_error(folders, tmp_path, what, parts):
    with pytest.raises(ValueError) as error:
        PretrainedAutoencoder(str(faulty(what, folders, tmp_path / what)))
    assert len(str(error.value).splitlines()) == 1
    for part in [str(tmp_path), *parts]:
        assert part in str(error.value)


@pytest.mark.parametrize(("given", "part"), [
    ({"dtype": "float16"}, "dtype=float16: choose one of float32, bfloat16"),
    ({"slice_size": 0}, "slice_size=0 must be at least 1"),
    ({"tile": 24}, "tile=24 must be a multiple of 8 x the factor 2"),
    ({"mean": 0.0, "shift": 0.0}, "mean and autoencoder.shift set the same value"),
    ({"std": 1.0, "scale": 1.0}, "std and autoencoder.scale set the same value"),
    ({"mean": [0.0, 1.0]}, "mean holds 2 numbers for 4 channels"),
    ({"std": 0.0}, "std=0.0 must be positive"),
    ({"scale": -1.0}, "scale=-1.0 must be positive"),
    ({"shift": float("inf")}, "shift=inf must be finite"),
    ({"mean": float("nan")}, "mean=nan must be finite"),
])  # fmt: skip
def test_a_wrong_setting_gives_a_one_line_error(folders, given, part):
    with pytest.raises(ValueError) as error:
        PretrainedAutoencoder(str(folders["kl_4"]), **given)
    assert part in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_tiles_that_diffusers_does_not_support_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"tile=16.*4 channels"):
        PretrainedAutoencoder(str(saved(tmp_path, "tiny", latent_channels=16)), tile=16)


@pytest.mark.parametrize("name", KINDS)
def test_sides_that_are_not_multiples_of_the_factor_are_refused(folders, name):
    ours = PretrainedAutoencoder(str(folders[name]))
    with pytest.raises(ValueError, match=r"3 x 31 x 32.*multiples of 2"):
        ours.encode(noise(1, 31, 32))
    with pytest.raises(ValueError, match=r"3 x 32 x 31.*multiples of 2"):
        ours.encode(noise(1, 32, 31))
    with pytest.raises(ValueError, match=r"4 x 32 x 32: the autoencoder takes 3 channels"):
        ours.encode(noise(1)[:, [0, 1, 2, 0]])
    with pytest.raises(ValueError, match=rf"3 channels.*has {ours.channels}"):
        ours.decode(noise(1))
