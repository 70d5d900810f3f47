"""Adapters in and out: diffusers' files for SD3 and FLUX, peft's folders for other backbones, kohya's names."""

import copy
import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from dit.adapters.lora import LoRA
from dit.adapters.low_rank import LowRank, adapted_layers, attach, collect, merge, set_scales
from dit.checkpoints import dit as dit_files
from dit.checkpoints import flux, pixart, sd3
from dit.checkpoints.lora import DIFFUSERS, METADATA, PEFT, SETTINGS, read_adapter, read_tensors, write_adapter
from dit.types import Condition

from ..adapters.test_lora import VARIANTS, trained
from ..backbones.test_backbones import BACKBONES, TEXT, inputs, woken
from . import test_flux, test_sd3

FAMILIES = {"sd3": (test_sd3, test_sd3.SD35, sd3), "flux": (test_flux, test_flux.DEV, flux)}
NAMES = {"lora": {}, "dora": {"use_dora": True}, "rslora": {"use_rslora": True}}


def pipeline_of(family, net):
    """diffusers' pipeline of a transformer alone: all that load_lora_weights needs."""
    from diffusers import FluxPipeline, StableDiffusion3Pipeline

    kind = {"sd3": StableDiffusion3Pipeline, "flux": FluxPipeline}[family]
    parts = ["scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"]
    parts += ["text_encoder_3", "tokenizer_3"] if family == "sd3" else []
    return kind(transformer=net, **dict.fromkeys(parts))


def pair(family):
    """diffusers' network, and ours with its weights."""
    module, config, converter = FAMILIES[family]
    theirs = module.theirs(config)
    with torch.no_grad():  # a gain of zero, as in a trained network, would hide an update
        for p in theirs.parameters():
            if not p.any():
                torch.nn.init.normal_(p, std=0.05)
    return theirs, converter.from_diffusers(dict(theirs.config), theirs.state_dict()).eval()


def answers(family, theirs, ours):
    module, config, _ = FAMILIES[family]
    text, x, time = module.texts(config, 2), test_sd3.noise(2, 16, 8, 8), torch.tensor([100.0, 900.0])
    with torch.no_grad():
        return ours(x, time, text), module.call_theirs(theirs, x, time / (1000 if family == "flux" else 1), text)


def base_of(network):
    from dit.tensors import fingerprint

    return fingerprint(network)


def same(a: LowRank, b: LowRank) -> None:
    assert a.updates.keys() == b.updates.keys()
    assert a.rank_stabilized == b.rank_stabilized
    for name, update in a.updates.items():
        other = b.updates[name]
        assert update.alpha == other.alpha, name
        assert update.tensors.keys() == other.tensors.keys()
        assert all(torch.equal(t, other.tensors[part]) for part, t in update.tensors.items()), name


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_reads_ours_and_it_comes_back_unchanged(family, variant, tmp_path):
    theirs, ours = pair(family)
    LoRA(4, 6, ["attention", "mlp", "modulation", "text", "head.linear"], **VARIANTS[variant])(ours)
    adapter = collect(trained(ours))
    plain = copy.deepcopy(pair(family)[1])
    assert write_adapter(adapter, plain, tmp_path).startswith(DIFFUSERS)
    before = answers(family, theirs, ours)[1]
    pipeline_of(family, theirs).load_lora_weights(tmp_path)
    expected, found = answers(family, theirs, ours)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found - before).abs().max() > 0.01
    same(read_adapter(tmp_path, plain, base_of(plain)), adapter)


@pytest.mark.parametrize("variant", NAMES)
@pytest.mark.parametrize("targets", ["all", "some", "other scales"])
@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_adapters_are_read_and_come_back_unchanged(family, targets, variant, tmp_path):
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig, get_peft_model_state_dict

    theirs, ours = pair(family)
    some = {"rank_pattern": {"attn.to_v": 5}, "alpha_pattern": {"^transformer_blocks.1.attn.to_out.0": 3}}
    if targets == "some":  # q and v have one scale, at different ranks
        some["alpha_pattern"]["attn.to_v"] = 10 if variant == "lora" else 8 * 5**0.5 / 2
    layers = ["to_q", "to_v", "to_out.0"] if targets != "all" else [
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff.net.0.proj",
        "ff.net.2", "norm1.linear", "norm_out.linear", "proj_out", "context_embedder",
    ]  # fmt: skip
    options = NAMES[variant] | (some if targets != "all" and variant != "dora" else {})
    theirs.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=layers, **options))
    trained(theirs)
    kind = type(pipeline_of(family, None))
    metadata = _collate_lora_metadata({"transformer": theirs})
    kind.save_lora_weights(tmp_path / "theirs", get_peft_model_state_dict(theirs), **metadata)
    adapter = read_adapter(tmp_path / "theirs", ours, base_of(ours))
    plain, before = copy.deepcopy(ours), answers(family, theirs, ours)[0]
    attach(ours, adapter, "theirs")
    found, expected = answers(family, theirs, ours)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found - before).abs().max() > 0.01
    if targets == "other scales" and variant != "dora":  # one layer of ours has one scale: b takes the quotient
        return
    write_adapter(adapter, plain, tmp_path / "ours")
    a, b = (load_file(tmp_path / name / DIFFUSERS) for name in ("theirs", "ours"))
    if variant == "dora":  # the rows without an update have the lengths of the base's, which are written
        extra = b.keys() - a.keys()
        assert all(not b[name].any() for name in extra if name.endswith("lora_B.weight"))
        b = {name: tensor for name, tensor in b.items() if name in a}
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], tensor) for name, tensor in b.items())
    settings = [json.loads(read_tensors(tmp_path / name / DIFFUSERS)[1][METADATA]) for name in ("theirs", "ours")]
    for key in ("r", "lora_alpha", "use_dora", "use_rslora"):
        assert settings[0][f"transformer.{key}"] == settings[1][f"transformer.{key}"]


def stretched(adapter, names, end, prefix, upright=False):
    """The tensors of an adapter as kohya's scripts name them. names: our layer -> theirs."""
    found = {}
    for layer, update in adapter.updates.items():
        stem = prefix + names[layer].replace(".", "_")
        found |= {f"{stem}.lora_down.weight": update.a, f"{stem}.lora_up.weight": update.b}
        found |= {f"{stem}.alpha": torch.tensor(update.alpha)}
        if update.magnitude is not None:
            found[f"{stem}.dora_scale"] = update.magnitude[:, None]
    return {name: tensor.contiguous().clone() for name, tensor in found.items()}


SD3_NAMES = {
    "blocks.0.image.attention.qkv": "joint_blocks.0.x_block.attn.qkv",
    "blocks.0.image.alone.out": "joint_blocks.0.x_block.attn2.proj",
    "blocks.1.text.mlp.up": "joint_blocks.1.context_block.mlp.fc1",
    "blocks.2.last_text.modulation.linear": "joint_blocks.2.context_block.adaLN_modulation.1",
    "head.modulation.linear": "final_layer.adaLN_modulation.1",
}
FLUX_NAMES = {
    "blocks.0.text.attention.qkv": "double_blocks.0.txt_attn.qkv",
    "blocks.1.image.mlp.down": "double_blocks.1.img_mlp.2",
    "single_blocks.2.out": "single_blocks.2.linear2",
    "blocks.0.image.modulation.linear": "double_blocks.0.img_mod.lin",
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("family", "names"), [("sd3", SD3_NAMES), ("flux", FLUX_NAMES)], ids=["sd3", "flux"])
def test_kohyas_names_are_read(family, names, variant, tmp_path):
    ours = pair(family)[1]
    plain = copy.deepcopy(ours)
    LoRA(4, 6, list(names), **VARIANTS[variant])(ours)
    adapter = collect(trained(ours))
    save_file(stretched(adapter, names, "", "lora_unet_"), tmp_path / "kohya.safetensors")
    read = read_adapter(tmp_path / "kohya.safetensors", plain, base_of(plain))
    same(LowRank(read.updates, adapter.rank_stabilized), adapter)


def test_kohyas_layer_that_is_two_of_ours_is_divided_by_rows(tmp_path):
    ours = pair("flux")[1]
    qkv, mlp = ours.single_blocks[1].attention.qkv, ours.single_blocks[1].mlp
    rows, draw = qkv.out_features + mlp.out_features, torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 48, generator=draw), torch.randn(rows, 4, generator=draw)
    stem = "lora_unet_single_blocks_1_linear1"
    save_file(
        {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b, f"{stem}.alpha": torch.tensor(2.0)},
        tmp_path / "kohya.safetensors",
    )
    expected = [layer.weight + 0.5 * part for layer, part in zip((qkv, mlp), (b @ a).split([144, 192]), strict=True)]
    attach(ours, read_adapter(tmp_path / "kohya.safetensors", ours, ""), "one")
    merge(ours)
    torch.testing.assert_close([qkv.weight, mlp.weight], expected)


def test_kohyas_form_of_diffusers_names_is_read(tmp_path):
    ours, draw = pair("sd3")[1], torch.Generator().manual_seed(0)
    file, scale, parts = {}, 8 / 4, {}
    for part in "qkv":
        stem = f"lora_transformer_transformer_blocks_1_attn_to_{part}"
        a, b = torch.randn(4, 48, generator=draw), torch.randn(48, 4, generator=draw)
        file |= {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b, f"{stem}.alpha": torch.tensor(8.0)}
        parts[part] = scale * b @ a
    save_file(file, tmp_path / "kohya.safetensors")
    weight = ours.blocks[1].image.attention.qkv.weight.detach().clone()
    attach(ours, read_adapter(tmp_path / "kohya.safetensors", ours, ""), "one")
    torch.testing.assert_close(
        merge(ours).blocks[1].image.attention.qkv.weight, weight + torch.cat(list(parts.values()))
    )


PIXART = {
    "num_attention_heads": 4, "attention_head_dim": 12, "in_channels": 4, "out_channels": 8, "num_layers": 2,
    "cross_attention_dim": 48, "caption_channels": 12, "sample_size": 8, "patch_size": 2, "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False, "norm_eps": 1e-6, "use_additional_conditions": False,
}  # fmt: skip


def pixart_pair():
    from diffusers import PixArtTransformer2DModel

    torch.manual_seed(0)
    theirs = PixArtTransformer2DModel(**PIXART).eval()
    ours = pixart.from_diffusers(dict(theirs.config), theirs.state_dict())
    x, time, condition = inputs()

    def call(net):
        return net(
            x,
            condition.tokens,
            time,
            encoder_attention_mask=condition.mask,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample

    return ours.eval(), theirs, lambda net: net(x, time, condition), call


def classes_pair():
    from diffusers import DiTTransformer2DModel

    ours = woken(partial(BACKBONES["dit"], time_shift=1.0))
    config, state = dit_files.to_diffusers(ours, 8)
    theirs = DiTTransformer2DModel.from_config(config).eval()
    theirs.load_state_dict(state, strict=False)
    x, time, condition = inputs()
    label = condition.label
    return (
        ours.eval(),
        theirs,
        lambda net: net(x, time, Condition(label=label)),
        lambda net: net(x, timestep=time.long(), class_labels=label).sample,
    )


def text_pair():
    ours = woken(TEXT).eval()
    return ours, copy.deepcopy(ours), lambda net: net(*inputs()), lambda net: net(*inputs())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("make", [pixart_pair, classes_pair, text_pair], ids=["pixart", "dit", "text_dit"])
def test_peft_reads_our_folder_and_it_comes_back_unchanged(make, variant, tmp_path):
    from peft import PeftModel

    ours, theirs, call, call_theirs = make()
    plain = copy.deepcopy(ours)
    LoRA(4, 6, ["attention", "mlp"], **VARIANTS[variant])(ours)
    adapter = collect(trained(ours))
    note = write_adapter(adapter, plain, tmp_path)
    assert "a folder of peft" in note
    assert sorted(file.name for file in tmp_path.iterdir()) == [SETTINGS, PEFT]
    with torch.no_grad():
        before = call_theirs(theirs)
        loaded = PeftModel.from_pretrained(theirs, tmp_path).eval()
        torch.testing.assert_close(call_theirs(loaded), call(ours), atol=1e-5, rtol=1e-5)
        assert (call(ours) - before).abs().max() > 1e-3
    same(read_adapter(tmp_path, plain, base_of(plain)), adapter)


def file_of(tmp_path, change):
    ours = woken(TEXT)
    plain = copy.deepcopy(ours)
    write_adapter(collect(trained(LoRA(4, 4, ["mlp"])(ours))), plain, tmp_path)
    tensors = change(load_file(tmp_path / PEFT))
    save_file(tensors, tmp_path / "changed.safetensors")
    return plain, tmp_path / "changed.safetensors"


FIRST = "base_model.model.text_blocks.0.mlp.up"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"transformer.blocks.7.mlp.up.lora_A.weight": torch.ones(1)}, r"does not fit TextDiT: 1 unknown: transformer\.blocks\.7\.mlp\.up\.lora_A\.weight"),
        (lambda t: {k: v for k, v in t.items() if k != f"{FIRST}.lora_B.weight"}, r"1 missing: text_blocks\.0\.mlp\.up\.b"),
        (lambda t: t | {f"{FIRST}.lora_B.weight": torch.ones(5, 4)}, r"1 of another shape: text_blocks\.0\.mlp\.up \(5, 4\)"),
        (lambda t: t | {f"{FIRST}.lora_magnitude_vector": torch.ones(192)}, r"missing: .*\.magnitude"),
        (lambda t: {f"lora_unet_down_blocks_0_attentions_0_proj_in.{k}.weight": torch.ones(1) for k in ("lora_up", "lora_down")}, "2 unknown: lora_unet_down_blocks_0_attentions_0_proj_in"),
        (lambda t: {"text_encoder.layers.0.lora_A.weight": torch.ones(1)}, "1 unknown: text_encoder"),
        (lambda t: {"x": torch.ones(1)}, "1 unknown: x"),
        (lambda t: {}, "is empty"),
    ],
)  # fmt: skip
def test_a_file_of_which_something_does_not_fit_is_refused_with_its_keys(tmp_path, change, message):
    plain, file = file_of(tmp_path, change)
    before = copy.deepcopy(plain.state_dict())
    with pytest.raises(ValueError, match=message) as error:
        read_adapter(file, plain, "")
    assert "\n" not in str(error.value)
    assert plain.state_dict().keys() == before.keys()


def test_what_is_no_adapter_is_refused(tmp_path):
    net = TEXT()
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="cannot be read as an adapter"):
        read_adapter(tmp_path / "broken.safetensors", net, "")
    with pytest.raises(ValueError, match=f"is no folder of an adapter: it has neither {DIFFUSERS} nor {PEFT}"):
        read_adapter(tmp_path, net, "")
    with pytest.raises(ValueError, match=r"nowhere\.safetensors cannot be read"):
        read_adapter(tmp_path / "nowhere.safetensors", net, "")
    plain = file_of(tmp_path, dict)[0]
    settings = json.loads((tmp_path / SETTINGS).read_text())
    (tmp_path / SETTINGS).write_text(json.dumps(settings | {"peft_type": "LOHA"}))
    with pytest.raises(ValueError, match="peft_type=LOHA: only LORA is read"):
        read_adapter(tmp_path, plain, "")


def two(seeds=(1, 2), **options):
    """Two adapters of a network, on different layers."""
    found = []
    for seed, targets in zip(seeds, (["attention"], ["attention", "mlp"]), strict=True):
        net = woken(TEXT)
        found.append(collect(trained(LoRA(4, 8, targets, **options)(net), seed)))
    return woken(TEXT).eval(), found


def test_scale_0_is_the_base_bit_for_bit_and_scales_are_factors_of_the_updates():
    net, adapters = two()
    before, weight = net(*inputs()), net.blocks[0].attention.qkv.weight.detach().clone()
    for name, adapter in zip("ab", adapters, strict=True):
        attach(net, adapter, name)
    set_scales(net, {"a": 1.0, "b": 1.0})
    assert not torch.equal(net(*inputs()), before)
    set_scales(net, {"a": 0.0, "b": 0.0})
    assert torch.equal(net(*inputs()), before)
    set_scales(net, {"a": 0.5, "b": -2.0})
    adapted = net(*inputs())
    a, b = (adapter.updates["blocks.0.attention.qkv"] for adapter in adapters)
    torch.testing.assert_close(merge(net)(*inputs()), adapted, atol=1e-4, rtol=1e-4)
    expected = weight + 2 * (0.5 * b_of(a) - 2.0 * b_of(b))
    torch.testing.assert_close(net.blocks[0].attention.qkv.weight, expected)


def b_of(update):
    return update.b @ update.a


def test_dora_cannot_be_added_to_another_adapter():
    net, adapters = two(dora=True)
    for name, adapter in zip("ab", adapters, strict=True):
        attach(net, adapter, name)
    with pytest.raises(ValueError, match=r"sets the lengths of the rows of .* and cannot be added to another one"):
        set_scales(net, {"a": 1.0, "b": 1.0})
    set_scales(net, {"a": 1.0, "b": 0.0})
    assert all(layer.active_adapters in (["a"], []) for _, layer in adapted_layers(net))
