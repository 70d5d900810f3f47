"""The text towers of open_clip: CLIP's, CoCa's, SigLIP's, and those that it has from transformers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dit.encoders.pretrained import DTYPES, PretrainedText, how_it_cuts, place_of
from dit.hub import load_open_clip
from dit.tensors import dtype_of

READ = "choose one like CLIP, CoCa or SigLIP, or with a text tower of transformers"


class OpenClipText(PretrainedText):
    """The states of an open_clip model's text tower, and its projected text features before normalisation.

    model: an open_clip name with its `pretrained` tag or file, `local-dir:FOLDER`, or the name of a model that ships
    with dit. layer: whose states are taken, -1 the last, 1 the first. `normalize` has them pass the model's last norm,
    as its own last layer does; Stable Diffusion 2 takes layer -2 with it, SDXL without. Raises ValueError for weights
    that are not to be had.
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
        wanted = dtype_of("text_encoder.dtype", dtype, DTYPES)
        remedy = "give a known tag or a local file as text_encoder.pretrained, or text_encoder.model=local-dir:FOLDER"
        net, self.tokenizer = load_open_clip(model, pretrained, remedy)
        for part in ("visual", "text_decoder"):  # what sees, and what writes in CoCa, are not needed
            if hasattr(net, part):
                delattr(net, part)
        super().__init__(net.to(wanted), keep_padding, zero_null, slice_size)
        if getattr(self.tokenizer, "tokenizer_mode", ""):
            raise ValueError(f"text_encoder.model={model} has a token after its padding; {READ}")
        self.length = int(self.tokenizer.context_length)
        tower = getattr(net, "text", net)
        self.foreign = type(tower).__name__ == "HFTextEncoder"  # transformers' own network, with open_clip's pooling
        depth = tower.config.num_hidden_layers if self.foreign else len(tower.transformer.resblocks)
        self.place, self.normalize = place_of(layer, depth), normalize
        if not self.place or (self.foreign and not normalize):
            raise ValueError(
                f"text_encoder.layer={layer}, normalize={normalize}: {model} has no such states; choose -1, true"
            )
        probe = self.encode([""])
        assert probe.tokens is not None
        assert probe.pooled is not None
        if probe.pooled.dim() != 2:
            raise ValueError(f"text_encoder.model={model} pools no text; {READ}")
        self.sizes = {"token_dim": probe.tokens.shape[-1], "pooled_dim": probe.pooled.shape[-1]}

    def settings(self) -> list[object]:
        told, inner = self.tokenizer, getattr(self.tokenizer, "tokenizer", None)
        words = (told.encoder, told.bpe_ranks) if inner is None else how_it_cuts(inner)
        clean = None if inner is None else (told.clean_fn.__name__, told.strip_sep_token)
        return [str(self.net), self.place, self.normalize, self.length, words, clean]

    def counts(self, prompts: Sequence[str]) -> list[int]:
        inner = getattr(self.tokenizer, "tokenizer", None)
        if inner is None:
            return [len(self.tokenizer.encode(prompt)) + 2 for prompt in prompts]  # a start and an end
        clean = [self.tokenizer.clean_fn(prompt) for prompt in prompts]
        return [len(ids) for ids in inner(clean, verbose=False)["input_ids"]]

    def states(self, prompts: Sequence[str], mask: Tensor) -> tuple[Tensor, Tensor]:
        ids = self.tokenizer(list(prompts)).to(self.device)  # (B, length): its position embedding wants them all
        if self.foreign:
            text = self.net.text
            attend = (ids != text.config.pad_token_id).long()
            out = text.transformer(input_ids=ids, attention_mask=attend, output_hidden_states=True)
            tokens, pooled = out.hidden_states[self.place], text.proj(text.pooler(out, attend))
        else:
            told = self.net.forward_intermediates(
                text=ids,
                text_indices=[self.place - 1],
                normalize_intermediates=self.normalize,
                normalize=False,
                text_output_fmt="NLC",
            )
            pooled, tokens = told["text_features"], told["text_intermediates"][0]
        return tokens[:, : mask.shape[1]], pooled
