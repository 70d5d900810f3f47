"""transformers' text encoders: CLIP, T5, UMT5, and the hidden states of decoder language models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dit.encoders.pretrained import DTYPES, PretrainedText, how_it_cuts, place_of
from dit.hub import load_foreign
from dit.tensors import dtype_of

HUB_NAME = re.compile(r"(?!\.)[\w.-]+(/[\w.-]+)?")


def load(kind: str, name: str, folders: Sequence[str], dtype: str) -> tuple[Any, Any]:
    """A network of the class `kind` with its tokenizer, from the two subfolders of a folder or of a hub name.

    Weights are safetensors or tensors alone, and no code that comes with a model is run. Raises ValueError where
    something is missing.
    """
    import transformers

    wanted = dtype_of("text_encoder.dtype", dtype, DTYPES)
    here, there = folders
    remedy = (
        "give a folder with config.json, weights and tokenizer as text_encoder.name, or fetch one where there is a "
        "network: hf download NAME"
    )
    if not Path(name).is_dir() and not HUB_NAME.fullmatch(name):
        raise ValueError(f"text_encoder.name={name} is no folder on this machine; {remedy}")

    def both() -> tuple[Any, Any]:
        chatter = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity(transformers.logging.CRITICAL)
        transformers.logging.disable_progress_bar()
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(name, subfolder=there, trust_remote_code=False)
            net, report = getattr(transformers, kind).from_pretrained(
                name, subfolder=here, dtype=wanted, output_loading_info=True, trust_remote_code=False
            )
        finally:
            transformers.logging.set_verbosity(chatter)
            transformers.logging.enable_progress_bar()
        if report["missing_keys"]:  # transformers would go on with random numbers
            raise ValueError(f"its weights lack {', '.join(sorted(report['missing_keys'])[:3])} of a {kind}")
        return net, tokenizer

    net, tokenizer = load_foreign(both, f"text_encoder.name={name}", remedy, remote=not Path(name).is_dir())
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # its states are never looked at
    return net, tokenizer


class HuggingFaceText(PretrainedText):
    """What the encoders of transformers share. name: a folder or a hub name, whose `subfolder` and `tokenizer` lie as
    in diffusers' pipelines where these are given. dtype: float32, bfloat16 or float16."""

    kind: str

    def __init__(
        self,
        name: str,
        length: int | None,
        subfolder: str = "",
        tokenizer: str = "",
        dtype: str = "float32",
        keep_padding: bool = False,
        zero_null: bool = False,
        slice_size: int = 32,
    ) -> None:
        net, self.tokenizer = load(self.kind, name, (subfolder, tokenizer), dtype)
        super().__init__(net, keep_padding, zero_null, slice_size)
        self.length = net.config.max_position_embeddings if length is None else length
        if self.length < 1:
            raise ValueError(f"text_encoder.length={length} must be at least 1")

    def settings(self) -> list[object]:
        config = self.net.config.to_diff_dict()
        alien = ("_name_or_path", "transformers_version", "dtype", "architectures")
        return [
            {key: value for key, value in sorted(config.items()) if key not in alien},
            *how_it_cuts(self.tokenizer),
            self.length,
        ]

    def counts(self, prompts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self.tokenizer(list(prompts), verbose=False)["input_ids"]]

    def ids(self, prompts: Sequence[str], width: int) -> Tensor:
        """(B, width), cut and padded by the tokenizer."""
        told = self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=width,
            padding_side="right",
            return_tensors="pt",
        )
        return told["input_ids"].to(self.device)


class ClipText(HuggingFaceText):
    """`CLIPTextModel`, or with `projection` the `CLIPTextModelWithProjection`, whose pooled vector is projected.

    layer: whose states are taken, -1 the last. With `normalize` they pass the model's last norm, as its own last layer
    does; SDXL and SD3 take layer -2 without.
    """

    def __init__(
        self,
        name: str,
        projection: bool = False,
        layer: int = -1,
        normalize: bool = True,
        subfolder: str = "",
        tokenizer: str = "",
        dtype: str = "float32",
        keep_padding: bool = False,
        zero_null: bool = False,
        slice_size: int = 32,
    ) -> None:
        self.kind = "CLIPTextModelWithProjection" if projection else "CLIPTextModel"
        super().__init__(name, None, subfolder, tokenizer, dtype, keep_padding, zero_null, slice_size)
        config = self.net.config
        self.place, self.normalize = place_of(layer, config.num_hidden_layers), normalize
        self.norm = next(m for name, m in self.net.named_modules() if name.endswith("final_layer_norm"))
        self.sizes = {
            "token_dim": config.hidden_size,
            "pooled_dim": config.projection_dim if projection else config.hidden_size,
        }

    def settings(self) -> list[object]:
        return [*super().settings(), self.kind, self.place, self.normalize]

    def states(self, prompts: Sequence[str], mask: Tensor) -> tuple[Tensor, Tensor]:
        # No mask: each token looks at those before it alone, and padding comes last.
        told = self.net(self.ids(prompts, mask.shape[1]), output_hidden_states=True)
        tokens = told.hidden_states[self.place]
        return (self.norm(tokens) if self.normalize else tokens), told[0 if "text_embeds" in told else 1]


class T5Text(HuggingFaceText):
    """`T5EncoderModel` (arXiv:1910.10683): the last states, and no pooled vector. length: 120 for PixArt-alpha, 300 for
    PixArt-Sigma, 256 for SD3."""

    kind = "T5EncoderModel"

    def __init__(
        self,
        name: str,
        length: int = 256,
        subfolder: str = "",
        tokenizer: str = "",
        dtype: str = "float32",
        keep_padding: bool = False,
        zero_null: bool = False,
        slice_size: int = 32,
    ) -> None:
        super().__init__(name, length, subfolder, tokenizer, dtype, keep_padding, zero_null, slice_size)
        self.sizes = {"token_dim": self.net.config.d_model}

    def states(self, prompts: Sequence[str], mask: Tensor) -> tuple[Tensor, None]:
        return self.net(self.ids(prompts, mask.shape[1]), attention_mask=mask.long()).last_hidden_state, None


class UMT5Text(T5Text):
    """`UMT5EncoderModel`: many languages, and position biases in every layer (arXiv:2304.09151)."""

    kind = "UMT5EncoderModel"


class LanguageModelText(HuggingFaceText):
    """A hidden layer of a decoder language model (Qwen3, Gemma, Llama): no pooled vector.

    layer: as transformers counts hidden states, -1 the last, which has passed the model's last norm; the others pass
    it with `normalize` alone. Later layers are thrown away. prefix: an instruction before every prompt, of which the
    tokens are dropped, and suffix: what stands after it, of which they are kept; `length` does not count the prefix.
    """

    kind = "AutoModel"

    def __init__(
        self,
        name: str,
        length: int = 256,
        layer: int = -1,
        normalize: bool = False,
        prefix: str = "",
        suffix: str = "",
        subfolder: str = "",
        tokenizer: str = "",
        dtype: str = "bfloat16",
        zero_null: bool = False,
        slice_size: int = 32,
    ) -> None:
        super().__init__(name, length, subfolder, tokenizer, dtype, False, zero_null, slice_size)
        self.net = net = self.net.get_decoder()  # without what sees, where there is that too
        if not (hasattr(net, "layers") and hasattr(net, "norm")):
            raise ValueError(f"text_encoder.name={name} is a {type(net).__name__}, no decoder language model")
        depth = len(net.layers)
        self.place, self.prefix, self.suffix = place_of(layer, depth), prefix, suffix
        self.normalize = normalize or self.place == depth
        net.layers = net.layers[: self.place]
        if not self.normalize:
            net.norm = nn.Identity()
        net.eval()  # the new parts too
        self.sizes = {"token_dim": net.config.hidden_size}

    def settings(self) -> list[object]:
        return [*super().settings(), self.place, self.normalize, self.prefix, self.suffix]

    def split(self, prompts: Sequence[str]) -> list[tuple[list[int], int]]:
        """For each prompt its tokens, and how many of them belong to the prefix alone."""
        texts = [f"{self.prefix}{prompt}{self.suffix}" for prompt in prompts]
        told = self.tokenizer(texts, verbose=False, return_offsets_mapping=True)
        rows = []
        for ids, ends in zip(told["input_ids"], told["offset_mapping"], strict=True):
            before = next((i for i, (_, end) in enumerate(ends) if end > len(self.prefix)), len(ids) - 1)
            rows.append((ids, max(before, 0) if self.prefix else 0))
        return rows

    def counts(self, prompts: Sequence[str]) -> list[int]:
        return [len(ids) - before for ids, before in self.split(prompts)]

    def states(self, prompts: Sequence[str], mask: Tensor) -> tuple[Tensor, None]:
        rows, width = self.split(prompts), mask.shape[1]
        whole = torch.full((len(rows), width + max(before for _, before in rows)), self.tokenizer.pad_token_id)
        for row, (ids, before) in zip(whole, rows, strict=True):
            row[: min(len(ids), before + width)] = torch.tensor(ids[: before + width])
        # No mask: each token looks at those before it alone, and padding comes last.
        out = self.net(whole.to(self.device), use_cache=False).last_hidden_state
        return torch.stack([out[place, before : before + width] for place, (_, before) in enumerate(rows)]), None
