"""Text encoders of transformers: CLIP, T5, UMT5, and hidden states of decoder language models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dit.encoders.pretrained import DTYPES, PretrainedText, hidden_state_index, tokenizer_settings
from dit.hub import load_foreign
from dit.tensors import dtype_of

HUB_NAME = re.compile(r"(?!\.)[\w.-]+(/[\w.-]+)?")


def load(kind: str, name: str, folders: Sequence[str], dtype: str) -> tuple[Any, Any]:
    """Returns a network of the class `kind` and its tokenizer.

    name: a folder or a hub name. folders: the subfolders of the network and of the tokenizer. Weights are safetensors
    or pickles that hold only tensors, and no code that comes with a model is run. Raises ValueError if a file is
    missing or the name is unknown.
    """
    import transformers

    torch_dtype = dtype_of("text_encoder.dtype", dtype, DTYPES)
    remedy = (
        "give a folder with config.json, weights and tokenizer as text_encoder.name, or download one on a machine with "
        "network access: hf download NAME"
    )
    if not Path(name).is_dir() and not HUB_NAME.fullmatch(name):
        raise ValueError(f"text_encoder.name={name} is not a folder on this machine; {remedy}")

    def load_both() -> tuple[Any, Any]:
        verbosity = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity(transformers.logging.CRITICAL)
        transformers.logging.disable_progress_bar()
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(name, subfolder=folders[1], trust_remote_code=False)
            net, report = getattr(transformers, kind).from_pretrained(
                name, subfolder=folders[0], dtype=torch_dtype, output_loading_info=True, trust_remote_code=False
            )
        finally:
            transformers.logging.set_verbosity(verbosity)
            transformers.logging.enable_progress_bar()
        if report["missing_keys"]:  # transformers would initialise them at random
            raise ValueError(f"its weights lack {', '.join(sorted(report['missing_keys'])[:3])} of a {kind}")
        return net, tokenizer

    net, tokenizer = load_foreign(load_both, f"text_encoder.name={name}", remedy, remote=not Path(name).is_dir())
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # its states are masked
    return net, tokenizer


class HuggingFaceText(PretrainedText):
    """Base class of the encoders of transformers.

    name: a folder or a hub name. subfolder, tokenizer: the subfolders of network and tokenizer (diffusers' pipelines).
    dtype: float32, bfloat16 or float16."""

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
        irrelevant = ("_name_or_path", "transformers_version", "dtype", "architectures")
        return [
            {key: value for key, value in sorted(config.items()) if key not in irrelevant},
            *tokenizer_settings(self.tokenizer),
            self.length,
        ]

    def counts(self, prompts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self.tokenizer(list(prompts), verbose=False)["input_ids"]]

    def token_ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    @property
    def vocabulary_size(self) -> int:
        return len(self.tokenizer)

    @property
    def embedding(self) -> nn.Embedding:
        layer = self.net.get_input_embeddings()
        assert isinstance(layer, nn.Embedding)
        return layer

    def ids(self, prompts: Sequence[str], width: int) -> Tensor:
        """Returns token ids (B, width), truncated and padded by the tokenizer."""
        batch = self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=width,
            padding_side="right",
            return_tensors="pt",
        )
        return batch["input_ids"].to(self.device)


class ClipText(HuggingFaceText):
    """`CLIPTextModel`, or with `projection` the `CLIPTextModelWithProjection`, whose pooled vector is projected.

    layer: the layer whose states are returned, -1 the last. normalize: apply the model's final norm to them, as the
    model does after its last layer; SDXL and SD3 use layer -2 without it.
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
        self.hidden_index, self.normalize = hidden_state_index(layer, config.num_hidden_layers), normalize
        self.norm = next(m for name, m in self.net.named_modules() if name.endswith("final_layer_norm"))
        self.sizes = {
            "token_dim": config.hidden_size,
            "pooled_dim": config.projection_dim if projection else config.hidden_size,
        }

    def settings(self) -> list[object]:
        return [*super().settings(), self.kind, self.hidden_index, self.normalize]

    def states(self, prompts: Sequence[str], mask: Tensor) -> tuple[Tensor, Tensor]:
        # No attention mask is needed: attention is causal, and padding comes last.
        output = self.net(self.ids(prompts, mask.shape[1]), output_hidden_states=True)
        tokens = output.hidden_states[self.hidden_index]
        return (self.norm(tokens) if self.normalize else tokens), output[0 if "text_embeds" in output else 1]


class T5Text(HuggingFaceText):
    """`T5EncoderModel` (arXiv:1910.10683): the states of the last layer, no pooled vector.

    length: 120 for PixArt-alpha, 300 for PixArt-Sigma, 256 for SD3."""

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
    """`UMT5EncoderModel`: multilingual, with position biases in every layer (arXiv:2304.09151)."""

    kind = "UMT5EncoderModel"


class LanguageModelText(HuggingFaceText):
    """A hidden layer of a decoder language model (Qwen3, Gemma, Llama); no pooled vector.

    layer: an index into the hidden states of transformers. -1 is the last, after the model's final norm; the norm is
    applied to other layers only with `normalize`. Later layers are removed. prefix: an instruction before every prompt;
    its tokens are dropped and not counted in `length`. suffix: text after every prompt; its tokens are kept.
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
        self.net = net = self.net.get_decoder()  # without the vision tower of a multimodal model
        if not (hasattr(net, "layers") and hasattr(net, "norm")):
            raise ValueError(f"text_encoder.name={name} is a {type(net).__name__}, not a decoder language model")
        depth = len(net.layers)
        self.hidden_index, self.prefix, self.suffix = hidden_state_index(layer, depth), prefix, suffix
        self.normalize = normalize or self.hidden_index == depth
        net.layers = net.layers[: self.hidden_index]
        if not self.normalize:
            net.norm = nn.Identity()
        net.eval()  # includes the new modules
        self.sizes = {"token_dim": net.config.hidden_size}

    def settings(self) -> list[object]:
        return [*super().settings(), self.hidden_index, self.normalize, self.prefix, self.suffix]

    def split(self, prompts: Sequence[str]) -> list[tuple[list[int], int]]:
        """Returns for each prompt its token ids, and the number of tokens that belong only to the prefix."""
        texts = [f"{self.prefix}{prompt}{self.suffix}" for prompt in prompts]
        batch = self.tokenizer(texts, verbose=False, return_offsets_mapping=True)
        rows = []
        for ids, ends in zip(batch["input_ids"], batch["offset_mapping"], strict=True):
            before = next((i for i, (_, end) in enumerate(ends) if end > len(self.prefix)), len(ids) - 1)
            rows.append((ids, max(before, 0) if self.prefix else 0))
        return rows

    def counts(self, prompts: Sequence[str]) -> list[int]:
        return [len(ids) - before for ids, before in self.split(prompts)]

    def states(self, prompts: Sequence[str], mask: Tensor) -> tuple[Tensor, None]:
        rows, width = self.split(prompts), mask.shape[1]
        all_ids = torch.full((len(rows), width + max(before for _, before in rows)), self.tokenizer.pad_token_id)
        for row, (ids, before) in zip(all_ids, rows, strict=True):
            row[: min(len(ids), before + width)] = torch.tensor(ids[: before + width])
        # No attention mask is needed: attention is causal, and padding comes last.
        out = self.net(all_ids.to(self.device), use_cache=False).last_hidden_state
        return torch.stack([out[row, before : before + width] for row, (_, before) in enumerate(rows)]), None
