"""Creates folders of tiny random text encoders with their tokenizers; no test downloads anything."""

import json
from pathlib import Path

import torch

WORDS = ["a", "red", "blue", "star", "circle", "large", "small", "photo", "of", "the", "on", "black"]
LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]


def randomized(net, seed=0):
    """Returns the network with noise added to all weights, so that no bias, norm or position keeps its neutral value."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=draw) * (1 if p.dim() < 2 else p.shape[-1] ** -0.5))
    return net.eval()


def bpe_of(words, end):
    """Returns (vocabulary, merges) of a byte-level BPE that merges each word letter by letter."""
    from open_clip.tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    pieces, merges = [*letters, *([letter + end for letter in letters] if end else [])], []
    for word in words:
        parts = [*word[:-1], word[-1] + end]
        while len(parts) > 1:
            pair, parts = (parts[0], parts[1]), [parts[0] + parts[1], *parts[2:]]
            if pair not in merges:
                merges.append(pair)
                pieces.append(parts[0])
    return {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}, merges


def save_clip(folder: Path, tokenizer_folder: Path | None = None, width=32, projection=None, seed=0, pad=None) -> Path:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    vocabulary, merges = bpe_of(WORDS, "</w>")
    vocabulary |= {word: len(vocabulary) + i for i, word in enumerate(["<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocabulary, merges, model_max_length=16, **({"pad_token": pad} if pad else {}))
    config = CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=16, projection_dim=projection or width,
        bos_token_id=len(vocabulary) - 2, eos_token_id=len(vocabulary) - 1,
    )  # fmt: skip
    torch.manual_seed(seed)
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    randomized(kind(config), seed).save_pretrained(folder)
    tokenizer.save_pretrained(tokenizer_folder or folder)
    return folder


def save_t5_tokenizer(folder: Path) -> int:
    """Returns the size of its vocabulary; 0 is padding and 1 the end token."""
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -3.0) for word in WORDS] + [(letter, -6.0) for letter in LETTERS if letter not in WORDS]
    T5Tokenizer(vocab=pieces, extra_ids=0).save_pretrained(folder)
    return len(pieces)


def save_t5(folder: Path, tokenizer_folder: Path | None = None, width=32, multilingual=False, seed=0) -> Path:
    from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

    sizes = {
        "vocab_size": save_t5_tokenizer(tokenizer_folder or folder), "d_model": width, "d_kv": 8, "d_ff": 2 * width, "num_layers": 2, "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
    }  # fmt: skip
    torch.manual_seed(seed)
    net = UMT5EncoderModel(UMT5Config(**sizes)) if multilingual else T5EncoderModel(T5Config(**sizes))
    randomized(net, seed).save_pretrained(folder)
    return folder


def save_language_model(folder: Path, family="Qwen3", seed=0) -> Path:
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    vocabulary, merges = bpe_of([f"Ġ{word}" for word in WORDS], "")
    vocabulary |= {word: len(vocabulary) + i for i, word in enumerate(["<bos>", "<eos>", "<pad>"])}
    words = Tokenizer(models.BPE(vocabulary, merges))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    if family.startswith("Gemma"):
        words.post_processor = processors.TemplateProcessing(
            "<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
        )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )
    kind = "Gemma3Text" if family == "Gemma3" else family
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, pad_token_id=vocabulary["<pad>"], bos_token_id=vocabulary["<bos>"],
        eos_token_id=vocabulary["<eos>"],
    )  # fmt: skip
    torch.manual_seed(seed)
    randomized(getattr(transformers, f"{kind}Model")(config), seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


VISION = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}


def save_net_of_open_clip(folder: Path, net, config) -> Path:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    tensors = {name: tensor.contiguous().clone() for name, tensor in net.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    return folder


def save_open_clip(folder: Path, custom=False, **text) -> Path:
    import open_clip

    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 3} | text
    config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": text}
    torch.manual_seed(0)
    net = randomized((open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config))
    return save_net_of_open_clip(folder, net, config | ({"custom_text": True} if custom else {}))


def save_siglip(folder: Path) -> Path:
    """open_clip's SigLIP: no causal mask, T5 tokens, pooling by the last token."""
    return save_open_clip(
        folder, custom=True, vocab_size=save_t5_tokenizer(folder), hf_tokenizer_name="siglip", no_causal_mask=True,
        tokenizer_kwargs={"clean": "canonicalize"}, proj_bias=True, pool_type="last", norm_kwargs={"eps": 1e-6},
    )  # fmt: skip


def save_coca(folder: Path) -> Path:
    """open_clip's CoCa: a class token after the text, and a decoder besides the two towers."""
    import open_clip

    sizes = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 3}
    config = {
        "embed_dim": 24,
        "vision_cfg": VISION | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": sizes | {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": sizes | {"layers": 1, "attn_pooler_heads": 2},
    }
    torch.manual_seed(0)
    return save_net_of_open_clip(folder, randomized(open_clip.CoCa(**config)), config | {"custom_text": True})


def save_open_clip_of_roberta(folder: Path) -> Path:
    """An open_clip model whose text tower is transformers' RoBERTa."""
    from transformers import RobertaConfig, RobertaTokenizer

    vocabulary, merges = bpe_of([f"Ġ{word}" for word in WORDS], "")
    special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}
    vocabulary = special | {piece: index + len(special) for piece, index in vocabulary.items()}
    RobertaTokenizer(vocab=vocabulary, merges=merges).save_pretrained(folder)
    RobertaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=20,
    ).save_pretrained(folder)  # fmt: skip
    return save_open_clip_of_transformers(folder)


def save_open_clip_of_t5(folder: Path) -> Path:
    """An open_clip model whose text tower is the encoder of transformers' mT5."""
    from transformers import MT5Config

    pieces = save_t5_tokenizer(folder)
    MT5Config(vocab_size=pieces, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4).save_pretrained(folder)
    return save_open_clip_of_transformers(folder)


def save_open_clip_of_transformers(folder: Path) -> Path:
    """Saves an open_clip model around the tokenizer and config.json of a text network in the folder."""
    import open_clip

    text = {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder), "context_length": 16}
    config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": text}
    torch.manual_seed(0)
    net = randomized(open_clip.CustomTextCLIP(**config | {"text_cfg": text | {"hf_model_pretrained": False}}))
    return save_net_of_open_clip(folder, net, config)


def save_sd3(folder: Path) -> Path:
    """The text encoders of Stable Diffusion 3, in the folders of diffusers' pipeline."""
    save_clip(folder / "text_encoder", folder / "tokenizer", width=16, projection=16, seed=1)
    save_clip(folder / "text_encoder_2", folder / "tokenizer_2", width=24, projection=20, seed=2, pad="!")
    save_t5(folder / "text_encoder_3", folder / "tokenizer_3", width=48, seed=3)
    return folder


def save_flux(folder: Path) -> Path:
    """The text encoders of FLUX.1, in the folders of diffusers' pipeline."""
    save_clip(folder / "text_encoder", folder / "tokenizer", width=16, seed=1)
    save_t5(folder / "text_encoder_2", folder / "tokenizer_2", width=48, seed=3)
    return folder
