"""Every pretrained text encoder agrees with its own library on tiny random weights."""

import os
import shutil
import time

import pytest
import torch
import transformers

from dit.data.cache import build_cache
from dit.data.latent_dataset import LatentDataset
from dit.data.order import Visit
from dit.data.shapes import Shapes
from dit.encoders.autoencoder import Identity
from dit.encoders.huggingface import ClipText, LanguageModelText, T5Text, UMT5Text
from dit.encoders.joined import AlongFeatures, AlongTokens, flux, stable_diffusion_3
from dit.encoders.open_clip import OpenClipText
from dit.encoders.text import WordEncoder
from dit.runs import load_run

from ..conftest import train_tiny
from .folders import (
    randomized,
    save_clip,
    save_coca,
    save_flux,
    save_language_model,
    save_open_clip,
    save_open_clip_of_roberta,
    save_open_clip_of_t5,
    save_sd3,
    save_siglip,
    save_t5,
)

PROMPTS = ["a red star", "", "a photo of the large blue circle", "star"]
LONG = "a photo of a photo of a photo of a photo of a photo of the blue star on the red circle"
FAMILIES = ["Qwen3", "Gemma2", "Gemma3", "Llama"]


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Folders of encoders, by name."""
    root = tmp_path_factory.mktemp("encoders")
    folders = {
        "clip": save_clip(root / "clip"), "projected": save_clip(root / "projected", projection=20),
        "t5": save_t5(root / "t5"), "umt5": save_t5(root / "umt5", multilingual=True), "sd3": save_sd3(root / "sd3"),
        "flux": save_flux(root / "flux"),
        "open_clip": save_open_clip(root / "open_clip"), "custom": save_open_clip(root / "custom", custom=True),
        "both_ways": save_open_clip(root / "both_ways", custom=True, no_causal_mask=True, pool_type="last"),
        "siglip": save_siglip(root / "siglip"), "coca": save_coca(root / "coca"),
        "unpooled": save_open_clip(root / "unpooled", custom=True, pool_type="none"),
    }  # fmt: skip
    folders |= {family: save_language_model(root / family, family) for family in FAMILIES}
    return {name: str(folder) for name, folder in folders.items()}


ALL = {
    "clip": lambda folders, **more: ClipText(folders["clip"], **more),
    "projected": lambda folders, **more: ClipText(
        folders["projected"], projection=True, layer=-2, normalize=False, **more
    ),
    "t5": lambda folders, **more: T5Text(folders["t5"], length=20, **more),
    "umt5": lambda folders, **more: UMT5Text(folders["umt5"], length=20, **more),
    "qwen3": lambda folders, **more: LanguageModelText(folders["Qwen3"], 20, 2, **{"dtype": "float32"} | more),
    "gemma3": lambda folders, **more: LanguageModelText(
        folders["Gemma3"], 20, prefix="a photo of", **{"dtype": "float32"} | more
    ),
    "open_clip": lambda folders, **more: OpenClipText(f"local-dir:{folders['open_clip']}", **more),
    "siglip": lambda folders, **more: OpenClipText(f"local-dir:{folders['siglip']}", **more),
    "coca": lambda folders, **more: OpenClipText(f"local-dir:{folders['coca']}", **more),
    "sd3": lambda folders, **more: stable_diffusion_3(folders["sd3"], length=20, **more),
    "flux": lambda folders, **more: flux(folders["flux"], length=20, **more),
}


@pytest.fixture(params=ALL)
def make(request, folders):
    return lambda **more: ALL[request.param](folders, **more)


def close(ours, theirs):
    """Asserts equality within 1e-6 of the largest value, or 1e-6 if that is below one."""
    torch.testing.assert_close(ours, theirs, atol=1e-6 * max(1.0, float(theirs.detach().abs().max())), rtol=0)


# ---------------------------------------------------------------- common behaviour


def test_shapes_mask_and_sizes(make):
    encoder = make()
    encoded = encoder.encode(PROMPTS)
    assert encoded.tokens.shape == (4, encoder.length, encoder.sizes["token_dim"])
    assert encoded.tokens.dtype == torch.float32
    assert encoded.mask.shape == (4, encoder.length)
    assert encoded.mask.any(1).all()
    assert (encoded.mask.int().diff(dim=1) <= 0).all()  # real tokens first: the cache relies on it
    assert not encoded.tokens[~encoded.mask].any()
    assert ("pooled_dim" in encoder.sizes) == (encoded.pooled is not None)
    if encoded.pooled is not None:
        assert encoded.pooled.shape == (4, encoder.sizes["pooled_dim"])


def test_a_text_is_encoded_independently_of_the_batch(make):
    encoder = make()
    together = encoder.encode(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        alone = encoder.encode([prompt])
        torch.testing.assert_close(alone.tokens[0], together.tokens[row], atol=1e-5, rtol=0)
        assert torch.equal(alone.mask[0], together.mask[row])


def test_the_null_condition_is_the_empty_text_or_zeros(make):
    encoder = make()
    empty, null, zero = encoder.encode([""]), encoder.null(), make(zero_null=True).null()
    close(null.tokens, empty.tokens)
    assert null.tokens.any()
    assert not zero.tokens.any()
    assert torch.equal(zero.mask, empty.mask)
    assert zero.tokens.shape == null.tokens.shape
    if null.pooled is not None:
        close(null.pooled, empty.pooled)
        assert zero.pooled.shape == null.pooled.shape
        assert not zero.pooled.any()


def test_it_is_frozen_and_its_states_can_be_trained_on(make):
    encoded = make().encode(PROMPTS)
    weight = torch.ones(encoded.tokens.shape[-1], requires_grad=True)
    (encoded.tokens @ weight).sum().backward()  # fails for tensors of inference mode
    assert weight.grad.any()


def test_it_moves_to_a_device(make):
    encoder = make()
    assert encoder.to("meta") is encoder
    parts = [encoder]
    while any(hasattr(part, "parts") for part in parts):
        parts = [inner for part in parts for inner in getattr(part, "parts", [part])]
    assert {p.device.type for part in parts for p in part.net.parameters()} == {"meta"}
    assert not any(p.requires_grad for part in parts for p in part.net.parameters())
    assert not any(module.training for part in parts for module in part.net.modules())


def test_half_precision_is_close_to_float32(make):
    full, rough = make().encode(PROMPTS), make(dtype="bfloat16").encode(PROMPTS)
    assert rough.tokens.dtype == torch.float32
    assert 0 < (full.tokens - rough.tokens).norm() < 0.05 * full.tokens.norm()


def test_truncation_is_reported_once(make, capsys):
    encoder = make()
    assert encoder.fit([*PROMPTS, LONG + " star", LONG, LONG]) == [*PROMPTS, LONG + " star", LONG, LONG]
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all("prompts are cut after" in line and "and 1 more" in line for line in lines)
    encoder.encode([LONG])
    assert capsys.readouterr().err == ""


def test_the_fingerprint_names_weights_and_settings(make):
    assert make().fingerprint == make().fingerprint
    assert make().fingerprint == used(make()).fingerprint  # a tokenizer keeps state of its last call
    others = {make(zero_null=True).fingerprint, make(dtype="bfloat16").fingerprint, moved(make()).fingerprint}
    assert len({make().fingerprint, *others}) == 4


def used(encoder):
    encoder.encode(PROMPTS)
    return encoder


def moved(encoder):
    """Returns the encoder with one weight changed."""
    first = encoder
    while hasattr(first, "parts"):
        first = first.parts[-1]
    with torch.no_grad():
        next(first.net.parameters()).view(-1)[-1] += 0.01
    return encoder


def test_the_cache_returns_the_encoded_prompts(make, tmp_path):
    encoder, source = make(), Shapes("val", 4)
    build_cache(tmp_path / "cache", source, Identity(), encoder)
    batch = LatentDataset(tmp_path / "cache", encoder.length)[[Visit(2, 0), Visit(0, 0), Visit(1, 0)]]
    encoded = encoder.encode([source.captions[i] for i in (2, 0, 1)]).unmasked()
    torch.testing.assert_close(batch.condition.tokens, encoded.tokens, atol=2e-3, rtol=1e-3)  # stored in half precision
    torch.testing.assert_close(batch.condition.mask, encoded.mask)


def test_a_run_trains_with_it_and_does_not_save_it(folders, tmp_path):
    words = ["text_encoder=clip", f"text_encoder.name={folders['clip']}", "trainer.max_steps=2"]
    folder = train_tiny(tmp_path / "run", *words, "callbacks.previews.every=2")
    (file,) = (folder / "checkpoints").glob("*0002.ckpt")
    saved = torch.load(file, weights_only=True)
    assert saved["state_dict"]
    assert all(name.startswith("backbone.") for name in saved["state_dict"])
    pipeline = load_run(folder, device="cpu").pipeline
    assert isinstance(pipeline.text_encoder, ClipText)


def test_the_cache_encodes_on_its_device_and_frees_it(folders, tmp_path):
    class Watched(ClipText):
        def to(self, device):
            moves.append(str(device))
            return super().to(device)

    moves, source = [], Shapes("val", 2)
    for _ in range(2):  # the second finds it built
        build_cache(tmp_path / "cache", source, Identity(), Watched(folders["clip"]), device=torch.device("cpu", 0))
    assert moves == ["cpu:0", "cpu"]


# ---------------------------------------------------------------- transformers


@pytest.mark.parametrize("layer", [-1, -2, 1])
@pytest.mark.parametrize("normalize", [True, False])
def test_clip(folders, layer, normalize):
    net = transformers.CLIPTextModel.from_pretrained(folders["clip"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders["clip"])
    batch = tokenizer([*PROMPTS, LONG], padding="max_length", truncation=True, return_tensors="pt")
    theirs = net(batch.input_ids, output_hidden_states=True)
    states = theirs.hidden_states[layer]
    states = net.final_layer_norm(states) if normalize else states
    ours = ClipText(folders["clip"], layer=layer, normalize=normalize).encode([*PROMPTS, LONG])
    assert torch.equal(ours.mask, batch.attention_mask.bool())
    assert ours.mask[4].all()  # cut
    close(ours.tokens[ours.mask], states[ours.mask])
    close(ours.pooled, theirs.pooler_output)
    if layer == -1 and normalize:
        close(states, theirs.last_hidden_state)
    padded = ClipText(folders["clip"], layer=layer, normalize=normalize, keep_padding=True).encode([*PROMPTS, LONG])
    assert padded.mask.all()
    close(padded.tokens, states)


def test_clip_with_projection(folders):
    net = transformers.CLIPTextModelWithProjection.from_pretrained(folders["projected"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders["projected"])
    theirs = net(tokenizer(PROMPTS, padding="max_length", return_tensors="pt").input_ids)
    encoder = ClipText(folders["projected"], projection=True)
    close(encoder.encode(PROMPTS).pooled, theirs.text_embeds)
    assert encoder.sizes["pooled_dim"] == 20


@pytest.mark.parametrize("name", ["t5", "umt5"])
def test_t5(folders, name):
    kind, encoder = {
        "t5": (transformers.T5EncoderModel, T5Text), "umt5": (transformers.UMT5EncoderModel, UMT5Text)
    }[name]  # fmt: skip
    net, tokenizer = kind.from_pretrained(folders[name]), transformers.AutoTokenizer.from_pretrained(folders[name])
    batch = tokenizer([*PROMPTS, LONG], padding="max_length", truncation=True, max_length=14, return_tensors="pt")
    masked = net(batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    ours = encoder(folders[name], length=14).encode([*PROMPTS, LONG])
    assert torch.equal(ours.mask, batch.attention_mask.bool())
    assert ours.mask.sum(1).tolist() == [4, 1, 8, 2, 14]
    assert ours.pooled is None
    close(ours.tokens[ours.mask], masked[ours.mask])
    padded = encoder(folders[name], length=14, keep_padding=True).encode([*PROMPTS, LONG])
    close(padded.tokens, net(batch.input_ids).last_hidden_state)
    assert padded.mask.all()


@pytest.mark.parametrize("make", [T5Text, UMT5Text])
def test_padding_changes_nothing_in_real_tokens(folders, make):
    name = "t5" if make is T5Text else "umt5"
    short, long = (make(folders[name], length=length).encode(PROMPTS) for length in (8, 40))
    close(long.tokens[:, :8], short.tokens)
    kept = [
        make(folders[name], length=length, keep_padding=True).encode(PROMPTS[:1]).tokens[0, 0] for length in (8, 40)
    ]
    assert (kept[0] - kept[1]).abs().max() > 1e-3  # without the mask


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [-1, -2, 1, 4])
def test_a_language_model(folders, family, layer):
    net = transformers.AutoModel.from_pretrained(folders[family])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[family])
    batch = tokenizer([*PROMPTS, LONG], padding=True, padding_side="right", return_tensors="pt")
    theirs = net(**batch, output_hidden_states=True).hidden_states[layer]
    encoded = LanguageModelText(folders[family], 12, layer, dtype="float32").encode([*PROMPTS, LONG])
    for row in (0, 2, 3, 4):
        real = min(12, int(batch.attention_mask[row].sum()))
        assert encoded.mask[row].sum() == real
        close(encoded.tokens[row, :real], theirs[row, :real])
    assert encoded.mask[1].sum() == 1
    assert encoded.pooled is None
    normed = LanguageModelText(folders[family], 12, layer, normalize=True, dtype="float32").encode(PROMPTS)
    if layer in (-1, 4):
        close(normed.tokens, encoded.tokens[:4])
    else:
        close(normed.tokens[0, :3], net.norm(theirs)[0, :3])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prefix", ["a photo of ", "a large photo:\n"])
def test_the_tokens_of_an_instruction_are_dropped(folders, family, prefix):
    net = transformers.AutoModel.from_pretrained(folders[family])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[family])
    encoder = LanguageModelText(folders[family], 20, 2, prefix=prefix, suffix=" on the", dtype="float32")
    encoded = encoder.encode(["star", "the red star", ""])
    for row, prompt in enumerate(["star", "the red star", ""]):
        batch = tokenizer(f"{prefix}{prompt} on the", return_tensors="pt", return_offsets_mapping=True)
        kept = batch.pop("offset_mapping")[0, :, 1] > len(prefix)
        theirs = net(**batch, output_hidden_states=True).hidden_states[2][0]
        assert encoded.mask[row].sum() == kept.sum()
        close(encoded.tokens[row][encoded.mask[row]], theirs[kept])
    bare = LanguageModelText(folders[family], 20, 2, dtype="float32").encode(["star"])
    assert (bare.tokens[0, 0] - encoded.tokens[0, 0]).abs().max() > 1e-3  # the instruction changes the states


VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


@pytest.mark.parametrize(("name", "kind", "whole_kind", "encoder"), [
    ("clip", "CLIPTextModel", "CLIPModel", ClipText),
    ("t5", "T5EncoderModel", "T5ForConditionalGeneration", T5Text),
    ("umt5", "UMT5EncoderModel", "UMT5ForConditionalGeneration", UMT5Text),
    ("Qwen3", "Qwen3Model", "Qwen3ForCausalLM", LanguageModelText),
    ("Gemma3", "Gemma3TextModel", "Gemma3ForCausalLM", LanguageModelText),
])  # fmt: skip
def test_the_folder_of_a_whole_model_is_accepted(folders, tmp_path, name, kind, whole_kind, encoder):
    part = getattr(transformers, kind).from_pretrained(folders[name])
    config = part.config
    if name == "clip":
        config = transformers.CLIPConfig(text_config=config.to_dict(), vision_config=VISION, projection_dim=32)
    whole = getattr(transformers, whole_kind)(config)
    whole.load_state_dict(
        {f"{WHERE.get(name, '')}{key}": value for key, value in part.state_dict().items()}, strict=False
    )
    folder = tmp_path / "whole"
    shutil.copytree(folders[name], folder, ignore=shutil.ignore_patterns("config.json", "*.safetensors"))
    whole.save_pretrained(folder)
    assert len(whole.state_dict()) > len(part.state_dict())
    assert torch.equal(encoder(str(folder)).encode(PROMPTS).tokens, encoder(folders[name]).encode(PROMPTS).tokens)


WHERE = {"clip": "text_model.", "Qwen3": "model.", "Gemma3": "model."}


def test_layers_after_the_chosen_one_are_removed(folders):
    kept = LanguageModelText(folders["Qwen3"], 8, 1, dtype="float32").net
    assert len(kept.layers) == 1


# ---------------------------------------------------------------- open_clip


@pytest.mark.parametrize("name", ["open_clip", "custom", "both_ways", "siglip", "coca"])
def test_open_clip(folders, name):
    import open_clip

    net = open_clip.create_model(f"local-dir:{folders[name]}").eval()
    ids = open_clip.get_tokenizer(f"local-dir:{folders[name]}")([*PROMPTS, LONG])
    encoder = OpenClipText(f"local-dir:{folders[name]}")
    ours = encoder.encode([*PROMPTS, LONG])
    tower, outputs = getattr(net, "text", net), []
    tower.transformer.register_forward_hook(lambda module, args, out: outputs.append(out))
    close(ours.pooled, net.encode_text(ids, normalize=False))
    end = 1 if name == "siglip" else 49407
    assert torch.equal(ours.mask, torch.arange(16) <= (ids == end).int().argmax(1)[:, None])
    assert ours.mask[4].all()
    raw = outputs[0][:, :16]  # without CoCa's class token
    close(ours.tokens[ours.mask], tower.ln_final(raw)[ours.mask])
    bare = OpenClipText(f"local-dir:{folders[name]}", normalize=False, keep_padding=True).encode([*PROMPTS, LONG])
    close(bare.tokens, raw)
    assert encoder.sizes == {"token_dim": 32, "pooled_dim": 24}


def test_a_named_layer_of_open_clip(folders):
    import open_clip

    net = open_clip.create_model(f"local-dir:{folders['open_clip']}").eval()
    outputs = []
    net.transformer.resblocks[1].register_forward_hook(lambda module, args, out: outputs.append(out))
    net.encode_text(open_clip.get_tokenizer(f"local-dir:{folders['open_clip']}")(PROMPTS))
    for layer in (2, -2):
        ours = OpenClipText(f"local-dir:{folders['open_clip']}", layer=layer, normalize=False, keep_padding=True)
        close(ours.encode(PROMPTS).tokens, outputs[0])
    normed = OpenClipText(f"local-dir:{folders['open_clip']}", layer=-2, keep_padding=True)
    close(normed.encode(PROMPTS).tokens, net.ln_final(outputs[0]))


def test_a_file_of_weights_for_a_named_model(tmp_path):
    import open_clip
    from safetensors.torch import save_file

    net = randomized(open_clip.create_model("ViT-S-32-alt"))
    save_file({k: v.clone().contiguous() for k, v in net.state_dict().items()}, tmp_path / "net.safetensors")
    encoder = OpenClipText("ViT-S-32-alt", str(tmp_path / "net.safetensors"))
    close(encoder.encode(PROMPTS).pooled, net.encode_text(open_clip.get_tokenizer("ViT-S-32-alt")(PROMPTS)))
    assert encoder.length == 77


@pytest.mark.parametrize(("save", "padding"), [(save_open_clip_of_roberta, 1), (save_open_clip_of_t5, 0)])
@pytest.mark.parametrize("layer", [-1, 1])
def test_a_text_tower_of_transformers_in_open_clip(tmp_path, save, padding, layer):
    import open_clip

    folder = f"local-dir:{save(tmp_path / 'folder')}"
    net, tokenizer = open_clip.create_model(folder).eval(), open_clip.get_tokenizer(folder)
    ids = tokenizer([*PROMPTS, LONG])
    attend = (ids != padding).long()
    states = net.text.transformer(input_ids=ids, attention_mask=attend, output_hidden_states=True).hidden_states[layer]
    encoder = OpenClipText(folder, layer=layer)
    ours = encoder.encode([*PROMPTS, LONG])
    close(ours.pooled, net.encode_text(ids))
    assert torch.equal(ours.mask, attend.bool())
    close(ours.tokens[ours.mask], states[ours.mask])
    assert encoder.sizes == {"token_dim": 32, "pooled_dim": 24}


@pytest.mark.parametrize(("tag", "quick"), [("openai", True), ("laion2b_s34b_b79k", False)])
@pytest.mark.parametrize("model", ["ViT-B-32", "ViT-B/32"])
def test_weights_of_a_tag_get_the_activation_they_were_trained_with(monkeypatch, model, tag, quick):
    options_used = []

    def create(*names, **options):
        options_used.append(options["force_quick_gelu"])
        raise OSError("enough")

    monkeypatch.setattr("open_clip.create_model", create)
    with pytest.raises(ValueError, match="cannot be loaded"):
        OpenClipText(model, tag)
    assert options_used == [quick]


def test_the_model_that_ships():
    assert OpenClipText("shapes_clip").encode(["a red star"]).mask.sum() == 5


# ---------------------------------------------------------------- joined


def test_sd3_is_joined_as_diffusers_does(folders):
    from diffusers import StableDiffusion3Pipeline

    folder, parts = folders["sd3"], {}
    for number, kind in (
        ("", "CLIPTextModelWithProjection"),
        ("_2", "CLIPTextModelWithProjection"),
        ("_3", "T5EncoderModel"),
    ):
        parts[f"text_encoder{number}"] = getattr(transformers, kind).from_pretrained(
            folder, subfolder=f"text_encoder{number}"
        )
        parts[f"tokenizer{number}"] = transformers.AutoTokenizer.from_pretrained(folder, subfolder=f"tokenizer{number}")
    pipe = StableDiffusion3Pipeline(transformer=None, scheduler=None, vae=None, **parts)
    with torch.no_grad():
        tokens, no_tokens, pooled, no_pooled = pipe.encode_prompt(
            [*PROMPTS, LONG], None, None, device="cpu", max_sequence_length=20
        )
    encoder = stable_diffusion_3(folder, length=20)
    ours, null = encoder.encode([*PROMPTS, LONG]), encoder.null()
    assert ours.tokens.shape == (5, 16 + 20, 48)
    assert encoder.sizes == {"token_dim": 48, "pooled_dim": 36}
    close(ours.tokens, tokens)
    close(ours.pooled, pooled)
    close(null.tokens, no_tokens[:1])
    close(null.pooled, no_pooled[:1])
    assert ours.mask.all()  # padding is text to SD3


def test_flux_is_joined_as_diffusers_does(folders):
    from diffusers import FluxPipeline

    folder, parts = folders["flux"], {}
    for number, kind in (("", "CLIPTextModel"), ("_2", "T5EncoderModel")):
        net = getattr(transformers, kind).from_pretrained(folder, subfolder=f"text_encoder{number}")
        parts[f"text_encoder{number}"] = net
        parts[f"tokenizer{number}"] = transformers.AutoTokenizer.from_pretrained(folder, subfolder=f"tokenizer{number}")
    pipe = FluxPipeline(transformer=None, scheduler=None, vae=None, **parts)
    with torch.no_grad():
        tokens, pooled, _ = pipe.encode_prompt([*PROMPTS, LONG], None, device="cpu", max_sequence_length=20)
    encoder = flux(folder, length=20)
    ours = encoder.encode([*PROMPTS, LONG])
    assert ours.tokens.shape == (5, 20, 48)
    assert encoder.sizes == {"token_dim": 48, "pooled_dim": 16}
    close(ours.tokens, tokens)
    close(ours.pooled, pooled)
    assert ours.mask.all()  # padding is text to FLUX


def test_joined_tokens_are_complete_and_before_the_padding(folders):
    parts = [
        ClipText(folders["clip"]),
        T5Text(folders["t5"], length=10),
        ClipText(folders["projected"], projection=True),
    ]
    joined, conditions = AlongTokens(parts).encode(PROMPTS), [part.encode(PROMPTS) for part in parts]
    for row in range(4):
        real = torch.cat([c.tokens[row][c.mask[row]] for c in conditions])
        assert joined.mask[row].tolist() == [True] * len(real) + [False] * (42 - len(real))
        assert torch.equal(joined.tokens[row, : len(real)], real)
    assert torch.equal(joined.pooled, torch.cat([conditions[0].pooled, conditions[2].pooled], 1))
    assert "pooled_dim" not in AlongTokens([parts[1], parts[1]]).sizes
    assert AlongTokens(parts[:2]).fingerprint != AlongTokens(parts[1::-1]).fingerprint


def test_incompatible_parts_are_refused(folders):
    with pytest.raises(ValueError, match=r"of \[10, 16\] tokens"):
        AlongFeatures([ClipText(folders["clip"]), T5Text(folders["t5"], length=10)])
    with pytest.raises(ValueError, match="at least one"):
        AlongTokens([])


# ---------------------------------------------------------------- errors: one line, without delay


@pytest.mark.parametrize(("make", "words"), [
    (lambda folders: T5Text("/no/such/folder"), "text_encoder.name=/no/such/folder is not a folder"),
    (lambda folders: T5Text("nobody/nothing"), "text_encoder.name=nobody/nothing cannot be loaded .*incomplete in the local cache.*HF_HUB_OFFLINE.*give a folder"),
    (lambda folders: T5Text(folders["t5"], length=0), "text_encoder.length=0 must be at least 1"),
    (lambda folders: T5Text(folders["t5"], dtype="float8"), "text_encoder.dtype=float8: choose one of float32"),
    (lambda folders: ClipText(folders["clip"], layer=7), "text_encoder.layer=7: the model has 3 layers"),
    (lambda folders: ClipText(folders["clip"], projection=True), "lack text_projection.weight of a CLIPTextModelWithProjection"),
    (lambda folders: LanguageModelText(folders["t5"]), "not a decoder language model|cannot be loaded"),
    (lambda folders: OpenClipText("local-dir:/no/such/folder"), "'local-dir:/no/such/folder' .*cannot be loaded .*text_encoder"),
    (lambda folders: OpenClipText("ViT-B-32", "openai"), "'ViT-B-32' with weights 'openai' cannot be loaded .*HF_HUB_OFFLINE"),
    (lambda folders: OpenClipText("ViT-B-32", "no_tag"), "'no_tag' cannot be loaded .*not a known tag"),
    (lambda folders: OpenClipText("ViT-B-32"), "cannot be loaded"),
    (lambda folders: OpenClipText("hf-hub:nobody/nothing"), "cannot be loaded .*HF_HUB_OFFLINE"),
    (lambda folders: OpenClipText(f"local-dir:{folders['open_clip']}", layer=0), "layer=0"),
    (lambda folders: OpenClipText(f"local-dir:{folders['unpooled']}"), "pools no text; choose one like CLIP, CoCa or SigLIP"),
])  # fmt: skip
def test_a_missing_part_gives_a_one_line_error_at_once(folders, make, words):
    begin = time.monotonic()
    with pytest.raises(ValueError, match=words) as error:
        make(folders)
    assert "\n" not in str(error.value)
    assert time.monotonic() - begin < 5


def test_an_unreachable_hub_fails_within_seconds(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    begin = time.monotonic()
    with pytest.raises(ValueError, match=r"nobody/nothing cannot be loaded .*127.0.0.1:9 does not answer"):
        T5Text("nobody/nothing")
    assert time.monotonic() - begin < 5
    assert constants.HF_HUB_OFFLINE is False


def test_a_model_in_the_local_cache_needs_no_network(folders, tmp_path, monkeypatch):
    from huggingface_hub import constants

    inside = tmp_path / "models--some--t5"
    shutil.copytree(folders["t5"], inside / "snapshots" / ("0" * 40))
    (inside / "refs").mkdir()
    (inside / "refs" / "main").write_text("0" * 40)
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(constants, name, str(tmp_path), raising=False)
    close(T5Text("some/t5").encode(PROMPTS).tokens, T5Text(folders["t5"]).encode(PROMPTS).tokens)


def test_pickles_with_code_are_refused(folders, tmp_path):
    folder = tmp_path / "evil"
    shutil.copytree(folders["t5"], folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + os.fsencode(tmp_path / "done") + b"'\ntR.")
    with pytest.raises(ValueError, match="cannot be loaded"):
        T5Text(str(folder))
    assert not (tmp_path / "done").exists()


def test_states_too_large_for_the_cache_are_refused(tmp_path):
    encoder = WordEncoder(["red"], width=8)
    encoder.table *= 1e6
    source = Shapes("val", 2)
    source.captions = ["red", "red"]
    with pytest.raises(ValueError, match="exceed 65504"):
        build_cache(tmp_path / "cache", source, Identity(), encoder)
