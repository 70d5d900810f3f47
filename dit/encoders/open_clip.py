"""Text encoders from open_clip: the text towers of CLIP, CoCa and SigLIP, and those built on transformers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dit.encoders.pretrained import DTYPES, PretrainedText, hidden_state_index, tokenizer_settings
from dit.hub import load_open_clip
from dit.tensors import dtype_of

SUPPORTED = "choose one like CLIP, CoCa or SigLIP, or with a text tower of transformers"


class OpenClipText(PretrainedText):
    """The text tower of an open_clip model: token states, and the projected text features before normalisation.

    model: an open_clip name with its `pretrained` tag or file, `local-dir:FOLDER`, or the name of a model that ships
    with dit. layer: the layer whose states are returned, -1 the last, 1 the first. normalize: apply the model's final
    norm to them, as the model does after its last layer; Stable Diffusion 2 uses layer -2 with it, SDXL without. Raises
    ValueError if the weights cannot be loaded, or the model has no such layer or no pooled text.
    """

    def __init__(
        self,
        model: str,
        pretrained: str | None = None,
        layer: int = -1,
        normalize: bool = True,
        dtype: str = "float32",
        keep_padding: bool = False,
        zero_null: bool = False,
        slice_size: int = 32,
    ) -> None:
        torch_dtype = dtype_of("text_encoder.dtype", dtype, DTYPES)
        remedy = "give a known tag or a local file as text_encoder.pretrained, or text_encoder.model=local-dir:FOLDER"
        net, self.tokenizer = load_open_clip(model, pretrained, remedy)
        for part in ("visual", "text_decoder"):  # the image tower, and CoCa's decoder
            if hasattr(net, part):
                delattr(net, part)
        super().__init__(net.to(torch_dtype), keep_padding, zero_null, slice_size)
        if getattr(self.tokenizer, "tokenizer_mode", ""):
            raise ValueError(f"text_encoder.model={model} has a token after its padding; {SUPPORTED}")
        self.length = int(self.tokenizer.context_length)
        tower = getattr(net, "text", net)
        self.foreign = type(tower).__name__ == "HFTextEncoder"  # a network of transformers with open_clip's pooling
        depth = tower.config.num_hidden_layers if self.foreign else len(tower.transformer.resblocks)
        self.hidden_index, self.normalize = hidden_state_index(layer, depth), normalize
        if not self.hidden_index or (self.foreign and not normalize):
            raise ValueError(
                f"text_encoder.layer={layer}, normalize={normalize}: {model} has no such states; "
                f"choose layer=-1, normalize=true"
            )
        probe = self.encode([""])
        assert probe.tokens is not None
        assert probe.pooled is not None
        if probe.pooled.dim() != 2:
            raise ValueError(f"text_encoder.model={model} pools no text; {SUPPORTED}")
        self.sizes = {"token_dim": probe.tokens.shape[-1], "pooled_dim": probe.pooled.shape[-1]}

    def settings(self) -> list[object]:
        tokenizer, inner = self.tokenizer, getattr(self.tokenizer, "tokenizer", None)
        words = (tokenizer.encoder, tokenizer.bpe_ranks) if inner is None else tokenizer_settings(inner)
        clean = None if inner is None else (tokenizer.clean_fn.__name__, tokenizer.strip_sep_token)
        return [str(self.net), self.hidden_index, self.normalize, self.length, words, clean]

    def counts(self, prompts: Sequence[str]) -> list[int]:
        inner = getattr(self.tokenizer, "tokenizer", None)
        if inner is None:
            return [len(self.tokenizer.encode(prompt)) + 2 for prompt in prompts]  # start and end tokens
        clean = [self.tokenizer.clean_fn(prompt) for prompt in prompts]
        return [len(ids) for ids in inner(clean, verbose=False)["input_ids"]]

    def token_ids(self, text: str) -> list[int]:
        inner = getattr(self.tokenizer, "tokenizer", None)
        if inner is None:
            return list(self.tokenizer.encode(text))
        return list(inner(self.tokenizer.clean_fn(text), add_special_tokens=False, verbose=False)["input_ids"])

    @property
    def vocabulary_size(self) -> int:
        inner = getattr(self.tokenizer, "tokenizer", None)
        return int(self.tokenizer.vocab_size) if inner is None else len(inner)

    @property
    def embedding(self) -> nn.Embedding:
        tower = getattr(self.net, "text", self.net)
        layer = tower.transformer.get_input_embeddings() if self.foreign else tower.token_embedding
        assert isinstance(layer, nn.Embedding)
        return layer

    def states(self, prompts: Sequence[str], mask: Tensor) -> tuple[Tensor, Tensor]:
        ids = self.tokenizer(list(prompts)).to(self.device)  # (B, length): as the position embedding needs
        if self.foreign:
            text = self.net.text
            attend = (ids != text.config.pad_token_id).long()
            out = text.transformer(input_ids=ids, attention_mask=attend, output_hidden_states=True)
            tokens, pooled = out.hidden_states[self.hidden_index], text.proj(text.pooler(out, attend))
        else:
            output = self.net.forward_intermediates(
                text=ids,
                text_indices=[self.hidden_index - 1],
                normalize_intermediates=self.normalize,
                normalize=False,
                text_output_fmt="NLC",
            )
            pooled, tokens = output["text_features"], output["text_intermediates"][0]
        return tokens[:, : mask.shape[1]], pooled
